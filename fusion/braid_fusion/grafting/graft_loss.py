"""The loss of a grafted model: language modelling, and how coherent and synchronised its layers are.

The code published with the grafting document adds the last two as Python floats, which train nothing; here they
are tensors in the graph of the forward.

Letters: B items, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.errors import TrainingConfigError
from braid_fusion.grafting.dataset import IGNORED


class GraftedModel(Protocol):
    """What of `ResonanceWrapper` training uses."""

    def __call__(self, **inputs: Any) -> Any: ...

    def fusion_parameters(self) -> Iterable[nn.Parameter]:
        """Those that are trained."""
        ...

    def auxiliary_losses(self) -> Mapping[str, Tensor]:
        """``coherence`` and ``kuramoto``, as far as layers measure them in the last forward; in its graph."""
        ...


def graft_loss(
    model: GraftedModel, batch: Mapping[str, Tensor], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Of one batch of (B, T) ``input_ids``, ``attention_mask`` and ``labels``.

    Args:
        weights: of the auxiliary losses by name; 0 leaves one out.

    Auxiliary losses are means over positions; of several batches in a step, each counts by its predicted tokens.

    Returns: "loss", what is minimised: the mean cross-entropy in nats per predicted token plus the weighted
        auxiliary losses; "lm_loss", the former alone; "tokens", how many were predicted; "coherence" and
        "kuramoto_order" in [0, 1] where layers measure them.
    Raises: TrainingConfigError for a weight of a loss that the model has not.
    """
    logits_BTV = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    targets = batch["labels"][:, 1:].to(logits_BTV.device).flatten()
    tokens = (targets != IGNORED).sum()
    total = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    loss = lm_loss = total / tokens.clamp(min=1)
    auxiliary = model.auxiliary_losses()
    for name, weight in weights.items():
        if weight == 0.0:
            continue
        if name not in auxiliary:
            raise TrainingConfigError(
                f"{name}_loss_weight: got {weight}, expected 0 for this model: its grafted layers measure "
                f"{', '.join(auxiliary) or 'nothing'}, not {name}"
            )
        loss = loss + weight * auxiliary[name].to(loss.device)
    figures = {"loss": loss, "lm_loss": lm_loss.detach(), "tokens": tokens}
    for name, figure in (("coherence", "coherence"), ("kuramoto", "kuramoto_order")):
        if name in auxiliary:
            figures[figure] = 1.0 - auxiliary[name].detach()
    return figures


@torch.no_grad()
def evaluate_graft(model: GraftedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Over all batches: "loss", the language model's alone, a mean over predicted tokens; and means over positions of
    what layers measure."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        figures = graft_loss(model, batch, {})
        tokens = int(figures.pop("tokens"))
        positions = int(batch["attention_mask"].sum())
        figures["loss"] = figures.pop("lm_loss")
        for name, value in figures.items():
            count = tokens if name == "loss" else positions
            sums[name] = sums.get(name, 0.0) + float(value) * count
            counts[name] = counts.get(name, 0) + count
    return {name: value / max(counts[name], 1) for name, value in sums.items()}
