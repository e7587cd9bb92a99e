"""Causal attention whose scores depend on the whole quaternion between query and key, not on its real part alone.

Owns the projections, the scores and the heads' axes. Quaternions themselves are ``quaternion.py``'s.

The published score Re(q* ⊗ k) is the ordinary dot product of q and k, so attention by it is plain attention.
Here r_ts = Σ_n q_tn* ⊗ k_sn, the quaternion that turns the query into the key, summed over the quaternions of a
head, enters with all four parts:

    score = Re r + a · Im r − w² |Im_⊥ r|²,   with r over √K

with an axis a of the head and Im_⊥ the part of Im r across it: a head prefers keys that are turned about its
own axis. The first two terms are linear in r and could be had by other projections; the third cannot:
the matrix of scores has a higher rank than any product of K-wide queries and keys.

⟨q ⊗ c, k⟩ is the component of r along the quaternion c, so turning the query by three quaternions per head (rows of
`turn_HCQ`) gives all that is needed in one batched product.

Letters: B batch, T positions of this call, M all positions so far, D width, H heads, K head width, Q quaternion
parts, C the three turned copies of a query.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Tensor, nn

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.initialisation import linear
from braid_fusion.resonance.checks import LARGEST, check_whole
from braid_fusion.resonance.golden import sphere_points
from braid_fusion.resonance.quaternion import from_axis_angle, rotation_matrix
from braid_fusion.resonance.sedenion import right_matrix
from braid_fusion.row_cache import RowCache

# Weight of the part across the axis at the start; that along the axis has 1, as the real part has.
_ACROSS = 0.5


class QuaternionAttention(nn.Module):
    """(B, T, D) → (B, T, D), causal.

    Args:
        hidden_dim: D, divisible by 4 · num_heads.
        golden_ratio_heads: the heads' axes start on a Fibonacci sphere (golden angles apart); else all at k. They are
            learned in both cases.
        generator: draws the projections.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        golden_ratio_heads: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_whole("quaternion attention: hidden_dim", hidden_dim, 1, LARGEST)
        check_whole("quaternion attention: num_heads", num_heads, 1, LARGEST)
        if hidden_dim % (4 * num_heads):
            raise GraftConfigError(
                f"quaternion attention: got hidden_dim {hidden_dim} and num_heads {num_heads}, expected a width"
                " that is a multiple of 4 · num_heads: a head holds whole quaternions"
            )
        self.hidden_dim, self.num_heads, self.head_width = hidden_dim, num_heads, hidden_dim // num_heads
        self.query_key_value = linear(hidden_dim, 3 * hidden_dim, generator, bias=False)
        self.out = linear(hidden_dim, hidden_dim, generator)
        self.turn_HCQ = nn.Parameter(_starting_turns(num_heads, golden_ratio_heads))

    def forward(
        self, x_BTD: Tensor, return_attention: bool = False, history: RowCache | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output (B, T, D); with ``return_attention`` also the weights (B, H, T, M).

        With ``history`` B is 1 and the rows follow those that it holds. Raises: FusionShapeError.
        """
        if x_BTD.dim() != 3 or x_BTD.shape[-1] != self.hidden_dim:
            raise FusionShapeError(
                f"quaternion attention: got states of shape {tuple(x_BTD.shape)}, expected (B, T, {self.hidden_dim})"
            )
        B, T, D = x_BTD.shape
        mapped = self.query_key_value(x_BTD)
        turned_BTCHK = self.turned(mapped[..., :D].view(B, T, self.num_heads, self.head_width))
        key_value = mapped[..., D:]
        if history is not None:
            if B != 1:
                raise FusionShapeError(
                    f"quaternion attention: got {B} sequences with one history, expected 1"
                )
            key_value = history.append("key_value", key_value[0]).unsqueeze(0)
        key_BMHK, value_BMHK = key_value.view(B, -1, 2, self.num_heads, self.head_width).unbind(2)
        weights_BHTM = self._masked(self.scores(turned_BTCHK, key_BMHK)).softmax(-1)
        read_BTHK = (weights_BHTM @ value_BMHK.transpose(1, 2)).transpose(1, 2)
        output_BTD = cast(Tensor, self.out(read_BTHK.flatten(2)))
        return (output_BTD, weights_BHTM) if return_attention else output_BTD

    def turned(self, query_BTHK: Tensor) -> Tensor:
        """Queries (B, T, H, K) to three turned copies of each, over √K, (B, T, C, H, K)."""
        # Each quaternion of a query, n of them in a head, times the head's three.
        query_BTHnQ = query_BTHK.view(*query_BTHK.shape[:-1], self.head_width // 4, 4)
        by_HCQQ = right_matrix(self.turn_HCQ * self.head_width**-0.5)
        return torch.einsum("hcij,bthnj->btchni", by_HCQQ, query_BTHnQ).flatten(-2)

    def scores(self, turned_BTCHK: Tensor, key_BMHK: Tensor) -> Tensor:
        """(B, H, T, M) before the mask, of turned queries (B, T, C, H, K) and keys (B, M, H, K)."""
        B, T, C, H, K = turned_BTCHK.shape
        turned_BHCTK = turned_BTCHK.permute(0, 3, 2, 1, 4).reshape(B, H, C * T, K)
        parts = turned_BHCTK @ key_BMHK.permute(0, 2, 3, 1)
        along, across_1, across_2 = parts.view(B, H, C, T, key_BMHK.shape[1]).unbind(2)
        less = torch.addcmul(along, across_1, across_1, value=-1.0)
        return torch.addcmul(less, across_2, across_2, value=-1.0)

    def _masked(self, scores_BHTM: Tensor) -> Tensor:
        """Minus infinity where a key is later than the query, the last of the queries being at the last key."""
        T, M = scores_BHTM.shape[-2:]
        if T == 1:
            return scores_BHTM
        return scores_BHTM + scores_BHTM.new_full((T, M), -torch.inf).triu(M - T + 1)


def _starting_turns(num_heads: int, golden: bool) -> Tensor:
    """(H, 3, 4): 1 + a, and two quaternions across a, orthonormal up to their weight, for each head's axis a."""
    k_X = torch.tensor([0.0, 0.0, 1.0])
    axes_HX = sphere_points(num_heads) if golden else k_X.expand(num_heads, 3)
    # The rotation that carries k to the axis: about k × a, by the angle between them.
    about_HX = torch.linalg.cross(k_X.expand(num_heads, 3), axes_HX)
    angle_H = torch.atan2(torch.linalg.vector_norm(about_HX, dim=-1), axes_HX[:, 2])
    frame_HXX = rotation_matrix(from_axis_angle(about_HX, angle_H))  # columns: images of i, j and k
    turns_HCQ = torch.zeros(num_heads, 3, 4)
    turns_HCQ[:, 0, 0] = 1.0
    turns_HCQ[:, 0, 1:] = frame_HXX[:, :, 2]
    turns_HCQ[:, 1:, 1:] = _ACROSS * frame_HXX[:, :, :2].mT
    return turns_HCQ
