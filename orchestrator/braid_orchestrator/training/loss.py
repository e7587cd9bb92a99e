"""The language-model loss of a braid on a batch, its shards wherever they are. Knows no optimiser and no data source.

Shapes: T packed rows, R rows whose next token counts, S shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.inprocess.whole_lanes import CutWarning
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import UnsupportedModelError
from braid_rpc.training import SpanInputs


class Batch(Protocol):
    """Packed whole sequences of the anchor's tokens: ``token_ids_T`` of ``lengths``, one after the other, and the
    rows ``loss_rows_R`` whose next tokens ``targets_R`` count."""

    @property
    def token_ids_T(self) -> Tensor:  # noqa: N802 - shape letters
        """(T,) int64."""

    @property
    def lengths(self) -> Sequence[int]:
        """Of the sequences."""

    @property
    def loss_rows_R(self) -> Tensor:  # noqa: N802 - shape letters
        """(R,) int64, ascending."""

    @property
    def targets_R(self) -> Tensor:  # noqa: N802 - shape letters
        """(R,) int64."""


def braid_loss(shards: Sequence[TrainingShard], stack: FusionStack) -> Callable[[Batch], dict[str, Tensor]]:
    """What a `Trainer` takes as loss.

    Returns: a function of a batch that gives the mean loss in nats per token under "loss", their number under
        "tokens", and each shard's mean weight in the readout under "weight/NAME" where the readout weighs. A
        sequence that another shard's tokenizer makes longer than its context is run in parts.
    """
    on_cut = CutWarning()

    def loss_of(batch: Batch) -> dict[str, Tensor]:
        rows = batch.loss_rows_R.tolist()
        every_row = rows == list(range(batch.token_ids_T.shape[0]))
        output = run_pass(
            shards,
            stack,
            batch.token_ids_T,
            batch.lengths,
            batch.targets_R,
            None if every_row else rows,
            on_cut=on_cut,
        )
        figures = {
            "loss": -output.target_logprobs.mean(),
            "tokens": torch.tensor(float(batch.targets_R.shape[0])),
        }
        if stack.plan.readout.kind != "anchor":
            weights_S = output.log_weights.detach().exp().mean(0)
            names = [shard.name for shard in stack.plan.shards]
            figures |= {f"weight/{name}": weight for name, weight in zip(names, weights_S, strict=True)}
        return figures

    return loss_of


def check_shards(shards: Sequence[TrainingShard], plan: BraidPlan) -> None:
    """Raises: UnsupportedModelError, naming shards that refuse training, or that gradients must pass and can't."""
    for pending in [
        shard.forward(SpanInputs(0, 0, (1,), torch.zeros(1, dtype=torch.int64))) for shard in shards
    ]:
        pending.result()
    receivers = {receiver for point in plan.points for receiver in point.receivers}
    unable = [
        shard.name for s, shard in enumerate(shards) if s in receivers and not shard.card.supports_backward
    ]
    if unable:
        raise UnsupportedModelError(
            f"training: shard {', '.join(unable)}: no gradients through these shards (their card says "
            "supports_backward: false), but states are injected there; expected shards with backward, or points "
            "whose receivers are others"
        )
