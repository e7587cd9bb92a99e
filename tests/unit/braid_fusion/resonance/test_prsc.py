"""PRSC composes each prime state with the one before, and only with that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.prsc import PRSC
from braid_fusion.resonance.quaternion import hamilton_product
from braid_fusion.row_cache import RowCache

Draw = Callable[..., Tensor]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_each_position_is_composed_with_the_one_before(draw: Draw) -> None:
    prsc, x = PRSC(6), draw(2, 5, 6, 4)
    out = prsc(x)
    assert torch.equal(out[:, 0], x[:, 0])
    before = x[:, 1] / x[:, 1].square().sum(-1).mean(-1).sqrt()[:, None, None]
    torch.testing.assert_close(out[:, 2], x[:, 2] + 0.1 * hamilton_product(before, x[:, 2]), **CLOSE)


def test_order_of_positions_matters(draw: Draw) -> None:
    prsc, x = PRSC(6), draw(1, 2, 6, 4)
    change = prsc(x)[:, 1] - x[:, 1]
    swapped = x.flip(1)
    other = prsc(swapped)[:, 1] - swapped[:, 1]
    # Both are products of the same two states, of other scales: they would be parallel if quaternions commuted.
    cosine = torch.nn.functional.cosine_similarity(change.flatten(), other.flatten(), dim=0)
    assert cosine < 0.9


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_result_is_linear_in_the_scale(draw: Draw, scale: float) -> None:
    prsc, x = PRSC(6), draw(2, 5, 6, 4)
    torch.testing.assert_close(prsc(scale * x) / scale, prsc(x), **CLOSE)


def test_position_sees_itself_and_the_one_before_and_no_other_sequence(draw: Draw) -> None:
    prsc, x = PRSC(6), draw(2, 7, 6, 4)
    changed = x.clone()
    changed[0, 3] = draw(6, 4, seed=9)
    same = (prsc(x) == prsc(changed)).flatten(2).all(-1)
    expected = torch.ones(2, 7, dtype=torch.bool)
    expected[0, 3:5] = False
    assert torch.equal(same, expected)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1]])
@pytest.mark.parametrize("parts", [2, 4])
def test_chunks_of_any_size_equal_the_whole(draw: Draw, chunks: list[int], parts: int) -> None:
    prsc, x, history = PRSC(6, parts), draw(1, 9, 6, parts), RowCache()
    pieces = [prsc(piece, history=history) for piece in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), prsc(x), **CLOSE)


def test_cropped_history_goes_on_from_there(draw: Draw) -> None:
    prsc, x, history = PRSC(6), draw(1, 9, 6, 4), RowCache()
    prsc(x[:, :5], history=history)
    prsc(draw(1, 3, 6, 4, seed=9), history=history)
    history.crop(5)
    torch.testing.assert_close(prsc(x[:, 5:], history=history), prsc(x)[:, 5:], **CLOSE)
    history.crop(0)
    torch.testing.assert_close(prsc(x, history=history), prsc(x), **CLOSE)


def test_gradients_are_right_and_finite_at_zero(draw: Draw) -> None:
    prsc = PRSC(3).double()
    x = draw(1, 4, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(prsc, (x,))
    prsc(x).square().sum().backward()
    assert prsc.blend_P.grad is not None
    assert prsc.blend_P.grad.abs().min() > 0
    zero = torch.zeros(1, 4, 3, 4, requires_grad=True)
    PRSC(3)(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_bfloat16(draw: Draw) -> None:
    x = draw(1, 4, 6, 4)
    out = PRSC(6).bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), PRSC(6)(x), atol=0.05, rtol=0.05)


def test_wrong_options_and_shapes_are_refused(draw: Draw) -> None:
    with pytest.raises(GraftConfigError, match="3 components"):
        PRSC(6, 3)
    with pytest.raises(FusionShapeError, match=r"\(5, 6, 4\)"):
        PRSC(6)(draw(5, 6, 4))
    with pytest.raises(FusionShapeError, match="2 sequences"):
        PRSC(6)(draw(2, 5, 6, 4), history=RowCache())
