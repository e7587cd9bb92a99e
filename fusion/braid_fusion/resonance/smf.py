"""SMF, sedenion memory field: a 16-dimensional memory that is written at every position and read by association.

Owns keys, values, decay and read. The published definition: a 16-dimensional memory with a decaying,
coherence-weighted associative read (the grafting document names it).

Letters: B batch, T positions of this call, M all positions so far but the last, D width, A the
16 components of a sedenion.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.initialisation import linear
from braid_fusion.resonance.checks import LARGEST, check_whole
from braid_fusion.resonance.sedenion import product
from braid_fusion.row_cache import RowCache

SEDENION = 16


class SMF(nn.Module):
    """read_t = Σ_{s<t} λ^(t−s) c_s ⟨q_t, k_s⟩ v_s / Σ_{s<t} λ^(t−s) c_s, out_t = W ((1 + Im q_t) · read_t).

    Queries and keys are unit sedenions, so |read| is at most the largest |v|, however long the text; c is the
    coherence of the position that wrote. λ in (0, 1) is learned.

    What is found is found by the inner product; the sedenion product then turns what was read by the query, so
    that the output is bilinear in both. Sedenions have zero divisors: q · r can vanish for q, r ≠ 0. But L(Im
    q) is antisymmetric, so |(1 + Im q) · r|² = |r|² + |Im q · r|² ≥ |r|²: nothing that was read is lost.

    Args:
        input_dim: D.
        decay: λ at the start.
        generator: draws the maps.
    """

    one_A: Tensor  # noqa: N815 - shape letters
    imaginary_A: Tensor  # noqa: N815

    def __init__(self, input_dim: int, decay: float = 0.95, generator: Generator | None = None) -> None:
        super().__init__()
        check_whole("smf: input_dim", input_dim, 1, LARGEST)
        if not 0.0 < decay < 1.0:
            raise GraftConfigError(f"smf: decay: got {decay!r}, expected a number between 0 and 1")
        self.input_dim = input_dim
        self.query_key_value = linear(input_dim, 3 * SEDENION, generator, bias=False)
        self.out = linear(SEDENION, input_dim, generator, bias=False)
        self.decay_logit = nn.Parameter(torch.logit(torch.tensor(decay)))
        one_A = functional.one_hot(torch.tensor(0), SEDENION).float()
        self.register_buffer("one_A", one_A, persistent=False)
        self.register_buffer("imaginary_A", 1.0 - one_A, persistent=False)

    def forward(self, x_BTD: Tensor, coherence_BT: Tensor, history: RowCache | None = None) -> Tensor:
        """(B, T, D) and the positions' coherence (B, T) ≥ 0 → (B, T, D). Position t reads from those before it.

        With ``history`` B is 1 and the rows follow those that it holds. Raises: FusionShapeError.
        """
        if x_BTD.dim() != 3 or x_BTD.shape[-1] != self.input_dim or coherence_BT.shape != x_BTD.shape[:2]:
            raise FusionShapeError(
                f"smf: got states of shape {tuple(x_BTD.shape)} and coherence of shape {tuple(coherence_BT.shape)},"
                f" expected (B, T, {self.input_dim}) and (B, T)"
            )
        maps_BT3A = self.query_key_value(x_BTD).view(*x_BTD.shape[:2], 3, SEDENION)
        unit_BT2A = functional.normalize(maps_BT3A[:, :, :2], dim=-1)
        query_BTA, key_BTA, value_BTA = unit_BT2A[:, :, 0], unit_BT2A[:, :, 1], maps_BT3A[:, :, 2]
        weight_BT1 = coherence_BT.to(value_BTA.dtype).unsqueeze(-1)
        written_BTC = torch.cat([key_BTA, value_BTA, weight_BT1], dim=-1)
        if history is not None:
            if x_BTD.shape[0] != 1:
                raise FusionShapeError(f"smf: got {x_BTD.shape[0]} sequences with one history, expected 1")
            written_BTC = history.append("memory", written_BTC[0]).unsqueeze(0)
        earlier_BMC = written_BTC[:, :-1]  # the last row is read by none of these positions
        key_BMA, value_BMA = earlier_BMC[..., :SEDENION], earlier_BMC[..., SEDENION:-1]
        decayed_TM = self._decayed(query_BTA.shape[1], written_BTC.shape[1]).to(x_BTD.dtype)
        share_BTM = decayed_TM * earlier_BMC[..., -1:].mT
        total_BT1 = share_BTM.sum(-1, keepdim=True)
        total_BT1 = total_BT1 + (total_BT1 == 0)  # where nothing was written the read is 0 / 1
        read_BTA = ((query_BTA @ key_BMA.mT) * share_BTM) @ value_BMA / total_BT1
        turn_BTA = torch.addcmul(self.one_A, query_BTA, self.imaginary_A)  # 1 + Im q
        return cast(Tensor, self.out(product(turn_BTA, read_BTA)))

    def _decayed(self, num_new: int, num_all: int) -> Tensor:
        """(T, M): λ^(t−s) of the last T of all positions towards the M = all − 1 before the last; 0 where s ≥ t.
        At least float32."""
        logit = self.decay_logit.to(torch.promote_types(self.decay_logit.dtype, torch.float32))
        places = torch.arange(num_all, dtype=logit.dtype, device=logit.device)
        age_TM = places[num_all - num_new :, None] - places[:-1]
        if num_new == 1:  # all others are earlier
            return torch.exp(functional.logsigmoid(logit) * age_TM)
        # Later positions, whose age is below 0, must not overflow before they are cut off.
        powers_TM = torch.exp(functional.logsigmoid(logit) * age_TM.clamp_min(0.0))
        return powers_TM.tril(num_all - num_new - 1)
