"""How much each shard has in the next token's probability: fixed, learned for all tokens, or per token.

Letters: R logit rows, S shards, D a shard's width, G gate width, N features per shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.errors import FusionShapeError, PlanError
from braid_fusion.initialisation import linear, zero_linear
from braid_fusion.mixing import NUM_LOGIT_FEATURES, logit_features, mix_logits
from braid_fusion.plan import BraidPlan
from braid_fusion.whole_number import whole_number

MAX_HIDDEN = 2**16
READOUTS = ("anchor", "mixture", "gate")

__all__ = [
    "NUM_LOGIT_FEATURES",
    "READOUTS",
    "AnchorReadout",
    "GateReadout",
    "MixtureReadout",
    "logit_features",
    "make_readout",
    "mix_logits",
]


class AnchorReadout(nn.Module):
    """The anchor alone. Without parameters."""

    log_weights_S: Tensor  # noqa: N815 - shape letters

    def __init__(self, num_shards: int, anchor: int) -> None:
        super().__init__()
        log_weights_S = torch.full((num_shards,), -torch.inf)
        log_weights_S[anchor] = 0.0
        self.register_buffer("log_weights_S", log_weights_S, persistent=False)

    def forward(self, hidden_RD: Sequence[Tensor], features_RSN: Tensor | None) -> Tensor:
        """(R, S): zero for the anchor, minus infinity for the others."""
        return self.log_weights_S.expand(hidden_RD[0].shape[0], -1)


class MixtureReadout(nn.Module):
    """The same learned weights for all tokens, uniform at the start."""

    def __init__(self, num_shards: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_shards))

    def forward(self, hidden_RD: Sequence[Tensor], features_RSN: Tensor | None) -> Tensor:
        """(R, S) log-weights."""
        return self.weights.log_softmax(0).expand(hidden_RD[0].shape[0], -1)


class GateReadout(nn.Module):
    """Weights per token from what enters each shard's head (normalised) and the features of its logits.

    Uniform at the start, so an untrained braid with this readout is the average of its shards' probabilities,
    not its anchor. Option ``hidden`` is the gate's width (default 64).
    """

    def __init__(self, widths: Sequence[int], hidden: int, generator: Generator | None) -> None:
        super().__init__()
        num_shards = len(widths)
        self.inputs = nn.ModuleList(linear(width, hidden, generator, bias=False) for width in widths)
        self.features = linear(num_shards * NUM_LOGIT_FEATURES, hidden, generator)
        self.score = zero_linear(hidden, num_shards)

    def forward(self, hidden_RD: Sequence[Tensor], features_RSN: Tensor | None) -> Tensor:
        """(R, S) log-weights. Raises: FusionShapeError if the features are missing or of another shape."""
        expected = (hidden_RD[0].shape[0], len(self.inputs), NUM_LOGIT_FEATURES)
        if features_RSN is None or features_RSN.shape != expected:
            got = None if features_RSN is None else tuple(features_RSN.shape)
            raise FusionShapeError(f"gate readout: features: got {got}, expected {expected}")
        dtype = self.score.weight.dtype
        gate_RG: Tensor = self.features(features_RSN.to(dtype).flatten(1))
        for project, state_RD in zip(self.inputs, hidden_RD, strict=True):
            gate_RG = gate_RG + project(
                functional.rms_norm(state_RD.to(dtype), state_RD.shape[-1:], eps=1e-6)
            )
        scores_RS: Tensor = self.score(functional.gelu(gate_RG))
        # Under autocast scores may be half as wide, in which the weights' sum would be one to three digits only.
        return scores_RS.log_softmax(-1, dtype=torch.promote_types(scores_RS.dtype, torch.float32))


def make_readout(plan: BraidPlan, generator: Generator | None) -> nn.Module:
    """Raises: PlanError for an unknown kind or option."""
    kind, options = plan.readout.kind, dict(plan.readout.options)
    if kind not in READOUTS:
        raise PlanError(f"readout: kind: got {kind!r}, expected one of {', '.join(READOUTS)}")
    hidden = options.pop("hidden", 64) if kind == "gate" else 64
    if options:
        allowed = "only 'hidden'" if kind == "gate" else "none"
        raise PlanError(f"readout {kind!r}: got options {sorted(options)}, expected {allowed}")
    whole_number("readout 'gate': hidden", hidden, 1, MAX_HIDDEN)
    if kind == "anchor":
        return AnchorReadout(len(plan.shards), plan.anchor)
    if kind == "mixture":
        return MixtureReadout(len(plan.shards))
    return GateReadout([shard.width for shard in plan.shards], hidden, generator)
