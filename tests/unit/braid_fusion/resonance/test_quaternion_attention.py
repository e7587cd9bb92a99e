"""Attention by the whole relative quaternion: not dot products, causal, the same in chunks of any size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.quaternion import conjugate, hamilton_product, normalise
from braid_fusion.resonance.quaternion_attention import QuaternionAttention
from braid_fusion.row_cache import RowCache

Draw = Callable[..., Tensor]
# float32 sums over heads of 8, batched in other shapes.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def attention(generator: Generator) -> QuaternionAttention:
    return QuaternionAttention(24, 3, generator=generator)


def _queries_and_keys(draw: Draw, T: int = 6, M: int = 6) -> tuple[Tensor, Tensor]:
    return draw(2, T, 3, 8, seed=1), draw(2, M, 3, 8, seed=2)


def _scores(attention: QuaternionAttention, query: Tensor, key: Tensor) -> Tensor:
    return attention.scores(attention.turned(query), key)


def test_scores_are_the_parts_of_the_relative_quaternion(attention: QuaternionAttention, draw: Draw) -> None:
    query, key = _queries_and_keys(draw, 4, 5)
    q = query.unflatten(-1, (2, 4))[:, :, None]  # B T 1 H n Q
    k = key.unflatten(-1, (2, 4))[:, None]
    relative = hamilton_product(conjugate(q), k).sum(-2) / 8**0.5  # B T M H Q
    turn = attention.turn_HCQ
    along, first, second = (torch.einsum("btmhq,hq->bhtm", relative, turn[:, c]) for c in range(3))
    expected = along - first.square() - second.square()
    torch.testing.assert_close(_scores(attention, query, key), expected, **CLOSE)


def test_heads_start_at_the_real_part_and_orthonormal_frames(attention: QuaternionAttention) -> None:
    turn = attention.turn_HCQ
    assert turn[:, 0, 0].eq(1).all()
    axis, across = turn[:, 0, 1:], turn[:, 1:, 1:] / 0.5
    frame = torch.cat([across, axis[:, None]], dim=1)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand(3, 3, 3), **CLOSE)
    assert turn[:, 1:, 0].eq(0).all()


def test_fault_real_part_only_turning_both_changes_no_dot_product_but_the_scores(
    attention: QuaternionAttention, draw: Draw
) -> None:
    """q ⊗ g and k ⊗ g have the dot product of q and k: attention by Re(q* ⊗ k) cannot tell them apart."""
    query, key = _queries_and_keys(draw)
    g = normalise(draw(4, seed=7))
    turned = [hamilton_product(t.unflatten(-1, (2, 4)), g).flatten(-2) for t in (query, key)]
    dots = torch.einsum("bthk,bmhk->bhtm", query, key)
    torch.testing.assert_close(torch.einsum("bthk,bmhk->bhtm", *turned), dots, **CLOSE)
    difference = _scores(attention, *turned) - _scores(attention, query, key)
    assert difference.abs().mean() > 0.1


def test_turning_all_from_the_left_changes_nothing(attention: QuaternionAttention, draw: Draw) -> None:
    """(g q)* (g k) = q* k: scores depend on how query and key lie to each other, not on a common turn."""
    query, key = _queries_and_keys(draw)
    g = normalise(draw(4, seed=7))
    turned = [hamilton_product(g, t.unflatten(-1, (2, 4))).flatten(-2) for t in (query, key)]
    torch.testing.assert_close(_scores(attention, *turned), _scores(attention, query, key), **CLOSE)


def test_fault_real_part_only_no_dot_product_of_that_width_gives_these_scores(
    attention: QuaternionAttention, draw: Draw
) -> None:
    """Any q·k of width 8, after whatever linear maps, gives score matrices of rank 8 at most."""
    query, key = _queries_and_keys(draw, 30, 30)
    singular = torch.linalg.svdvals(_scores(attention, query, key)[0, 0])
    assert singular[8] > 0.05 * singular[0]
    with torch.no_grad():
        attention.turn_HCQ[:, 1:] = 0.0
    linear = torch.linalg.svdvals(_scores(attention, query, key)[0, 0])
    assert linear[8] < 1e-4 * linear[0]


def test_axis_of_a_head_is_the_one_that_it_prefers(generator: Generator) -> None:
    """Of unit keys at the same real part, the one turned about the head's own axis scores highest."""
    attention = QuaternionAttention(12, 3, generator=generator)
    query = torch.zeros(1, 1, 3, 4)
    query[..., 0] = 1.0
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    axes = attention.turn_HCQ[:, 0, 1:].detach()
    for head in range(3):
        about = torch.cat([axes[head : head + 1], directions])
        key = torch.cat([torch.full((401, 1), 0.6), 0.8 * about], dim=-1)[None, :, None].expand(1, -1, 3, -1)
        assert _scores(attention, query, key)[0, head, 0].argmax() == 0


def test_fault_golden_axes_unused_they_change_the_result(draw: Draw) -> None:
    x = draw(1, 6, 24)
    golden, plain = (
        QuaternionAttention(24, 3, flag, generator=torch.Generator().manual_seed(1)) for flag in (True, False)
    )
    assert torch.equal(golden.query_key_value.weight, plain.query_key_value.weight)
    assert (golden(x) - plain(x)).abs().max() > 1e-3
    axes = golden.turn_HCQ[:, 0, 1:]
    assert (axes @ axes.T - torch.eye(3)).abs().max() < 0.9
    assert plain.turn_HCQ[0].equal(plain.turn_HCQ[1])


def test_later_positions_change_nothing_earlier(attention: QuaternionAttention, draw: Draw) -> None:
    x = draw(2, 9, 24)
    for cut in (1, 4, 8):
        changed = x.clone()
        changed[:, cut:] = 100 * draw(2, 9 - cut, 24, seed=4)
        assert torch.equal(attention(x)[:, :cut], attention(changed)[:, :cut])


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1], [3, 1, 5]])
def test_chunks_of_any_size_equal_the_whole(
    attention: QuaternionAttention, draw: Draw, chunks: list[int]
) -> None:
    x = draw(1, 9, 24)
    whole, history = attention(x), RowCache()
    pieces = [attention(piece, history=history) for piece in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **CLOSE)


def test_cropped_history_goes_on_from_there(attention: QuaternionAttention, draw: Draw) -> None:
    x, history = draw(1, 9, 24), RowCache()
    attention(draw(1, 9, 24, seed=8), history=history)
    history.crop(0)
    attention(x[:, :6], history=history)
    attention(draw(1, 2, 24, seed=9), history=history)
    history.crop(6)
    torch.testing.assert_close(attention(x[:, 6:], history=history), attention(x)[:, 6:], **CLOSE)


def test_weights_are_a_causal_distribution(attention: QuaternionAttention, draw: Draw) -> None:
    x, history = draw(2, 7, 24), RowCache()
    output, weights = attention(x, return_attention=True)
    assert weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    assert weights.triu(1).eq(0).all()
    assert torch.equal(output, attention(x))
    attention(x[:1, :4], history=history)
    _, late = attention(x[:1, 4:], return_attention=True, history=history)
    torch.testing.assert_close(late, weights[:1, :, 4:], **CLOSE)


def test_gradient_reaches_every_parameter(attention: QuaternionAttention, draw: Draw) -> None:
    (attention(draw(2, 7, 24)) * draw(2, 7, 24, seed=5)).sum().backward()
    for parameter in attention.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.abs() > 0).float().mean() > 0.99


def test_gradient_is_right_and_finite_where_a_key_equals_its_query(draw: Draw, generator: Generator) -> None:
    attention = QuaternionAttention(8, 2, generator=generator).double()
    x = draw(1, 4, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(attention, (x,))
    zero = torch.zeros(1, 4, 8, dtype=torch.float64, requires_grad=True)
    attention(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(draw: Draw, generator: Generator, dtype: torch.dtype) -> None:
    attention = QuaternionAttention(24, 3, generator=generator)
    x = draw(1, 6, 24)
    expected = attention(x)
    got = attention.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=0.1)


@pytest.mark.parametrize(("width", "heads"), [(24, 4), (6, 1)])
def test_heads_that_hold_no_whole_quaternions_are_refused(width: int, heads: int) -> None:
    with pytest.raises(GraftConfigError, match=f"hidden_dim {width} and num_heads {heads}"):
        QuaternionAttention(width, heads)


def test_wrong_shapes_are_refused(attention: QuaternionAttention) -> None:
    with pytest.raises(FusionShapeError, match=r"\(1, 3, 23\)"):
        attention(torch.zeros(1, 3, 23))
    with pytest.raises(FusionShapeError, match="2 sequences"):
        attention(torch.zeros(2, 3, 24), history=RowCache())
