"""The sedenion memory field reads what was written before, decayed, weighted by coherence, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.sedenion import product
from braid_fusion.resonance.smf import SMF
from braid_fusion.row_cache import RowCache

Draw = Callable[..., Tensor]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture
def memory(generator: Generator) -> SMF:
    return SMF(12, generator=generator)


def _coherence(draw: Draw, *shape: int) -> Tensor:
    return draw(*shape, seed=6).sigmoid()


def test_read_is_its_definition(memory: SMF, draw: Draw) -> None:
    x, c = draw(2, 6, 12), _coherence(draw, 2, 6)
    q, k, v = memory.query_key_value(x).chunk(3, dim=-1)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    decay = torch.sigmoid(memory.decay_logit)
    for b in range(2):
        for t in range(6):
            weights = [decay ** (t - s) * c[b, s] for s in range(t)]
            read = torch.zeros(16)
            for s in range(t):
                read = read + weights[s] * (q[b, t] @ k[b, s]) * v[b, s] / sum(weights)
            turn = q[b, t].clone()
            turn[0] = 1.0
            torch.testing.assert_close(memory(x, c)[b, t], memory.out(product(turn, read)), **CLOSE)


def test_first_position_reads_nothing(memory: SMF, draw: Draw) -> None:
    assert memory(draw(2, 5, 12), _coherence(draw, 2, 5))[:, 0].eq(0).all()


def test_position_reads_from_earlier_ones_of_its_own_sequence_only(memory: SMF, draw: Draw) -> None:
    x, c = draw(2, 7, 12), _coherence(draw, 2, 7)
    changed_x, changed_c = x.clone(), c.clone()
    changed_x[0, 3] = draw(12, seed=9)
    changed_c[0, 3] = 0.9
    same = (memory(x, c) == memory(changed_x, changed_c)).all(-1)
    expected = torch.ones(2, 7, dtype=torch.bool)
    expected[0, 3:] = False
    assert torch.equal(same, expected)


def test_incoherent_positions_leave_no_trace(memory: SMF, draw: Draw) -> None:
    x, c = draw(1, 7, 12), _coherence(draw, 1, 7)
    c[0, 2] = 0.0
    changed = x.clone()
    changed[0, 2] = draw(12, seed=9)
    torch.testing.assert_close(memory(x, c)[:, 3:], memory(changed, c)[:, 3:], **CLOSE)
    assert memory(x, torch.zeros(1, 7)).eq(0).all()


def test_read_finds_what_its_query_resembles(memory: SMF, draw: Draw) -> None:
    """Two facts are written; a query equal to the first one's key brings back the first one's value."""
    keys = torch.linalg.qr(draw(16, 16))[0][:2]
    values = draw(2, 16, seed=4)
    with torch.no_grad():
        memory.query_key_value.weight.zero_()
        memory.query_key_value.weight[:16, 2] = keys[0]
        for i in range(2):
            memory.query_key_value.weight[16:32, i] = keys[i]
            memory.query_key_value.weight[32:, i] = values[i]
        memory.out.weight.copy_(torch.eye(16)[:12])
    x = torch.eye(12)[None, :3]
    turn = torch.cat([torch.ones(1), keys[0, 1:]])
    decay = torch.sigmoid(memory.decay_logit)
    expected = product(turn, values[0]) * decay**2 / (decay + decay**2)
    torch.testing.assert_close(memory(x, torch.ones(1, 3))[0, 2], expected[:12], **CLOSE)


def test_a_zero_divisor_as_query_loses_nothing() -> None:
    e = torch.eye(16)
    query, read = e[3] + e[10], e[6] - e[15]
    assert product(query, read).eq(0).all()
    assert product(e[0] + query, read).norm() >= read.norm()


def test_turning_by_the_query_never_shortens(draw: Draw) -> None:
    query, read = draw(500, 16, seed=1), draw(500, 16, seed=2)
    query[:, 0] = 1.0
    assert (product(query, read).norm(dim=-1) >= read.norm(dim=-1)).all()


@pytest.mark.parametrize("decay", [0.5, 0.999999])
def test_read_does_not_grow_with_length(draw: Draw, generator: Generator, decay: float) -> None:
    memory = SMF(12, decay=decay, generator=generator)
    x, c = draw(1, 2000, 12), _coherence(draw, 1, 2000)
    v = memory.query_key_value(x)[..., 32:]
    bound = v.norm(dim=-1).max() * torch.linalg.matrix_norm(memory.out.weight, 2) * (1 + 16**0.5)
    assert memory(x, c).norm(dim=-1).max() < bound
    # The same state over and over: the read stays where it is.
    still = memory(x[:, :1].expand(1, 2000, 12), torch.ones(1, 2000))
    torch.testing.assert_close(still[:, -1], still[:, 1], **CLOSE)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1]])
def test_chunks_of_any_size_equal_the_whole(memory: SMF, draw: Draw, chunks: list[int]) -> None:
    x, c, history = draw(1, 9, 12), _coherence(draw, 1, 9), RowCache()
    pieces = [
        memory(piece, part, history=history)
        for piece, part in zip(x.split(chunks, 1), c.split(chunks, 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), memory(x, c), **CLOSE)


def test_cropped_history_goes_on_from_there(memory: SMF, draw: Draw) -> None:
    x, c, history = draw(1, 9, 12), _coherence(draw, 1, 9), RowCache()
    memory(x[:, :5], c[:, :5], history=history)
    memory(draw(1, 3, 12, seed=9), c[:, :3], history=history)
    history.crop(5)
    torch.testing.assert_close(memory(x[:, 5:], c[:, 5:], history=history), memory(x, c)[:, 5:], **CLOSE)


def test_gradient_reaches_everything_also_the_coherence(memory: SMF, draw: Draw) -> None:
    c = _coherence(draw, 2, 6).requires_grad_()
    (memory(draw(2, 6, 12), c) * draw(2, 6, 12, seed=3)).sum().backward()
    for parameter in memory.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert c.grad is not None
    assert c.grad[:, :-1].abs().min() > 0


def test_gradients_are_right_and_finite_at_zero(generator: Generator, draw: Draw) -> None:
    memory = SMF(4, generator=generator).double()
    x = draw(1, 4, 4, dtype=torch.float64).requires_grad_()
    c = draw(1, 4, seed=2, dtype=torch.float64).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(memory, (x, c))
    zero = torch.zeros(1, 4, 4, dtype=torch.float64, requires_grad=True)
    silent = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    memory(zero, silent).sum().backward()
    assert zero.grad is not None
    assert silent.grad is not None
    assert zero.grad.isfinite().all()
    assert silent.grad.isfinite().all()


def test_bfloat16(memory: SMF, draw: Draw) -> None:
    x, c = draw(1, 6, 12), _coherence(draw, 1, 6)
    expected = memory(x, c)
    got = memory.bfloat16()(x.bfloat16(), c)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.1)


def test_float16_is_finite_where_nothing_was_written(memory: SMF, draw: Draw) -> None:
    x, c = draw(1, 6, 12), _coherence(draw, 1, 6)
    expected = memory(x, c)
    got = memory.half()(x.half(), c)
    torch.testing.assert_close(got.float(), expected, atol=0.01, rtol=0.05)
    got.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())
    memory.float().zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        mixed = memory(x, c)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


def test_wrong_options_and_shapes_are_refused(memory: SMF) -> None:
    with pytest.raises(GraftConfigError, match=r"decay: got 1\.0"):
        SMF(12, decay=1.0)
    with pytest.raises(FusionShapeError, match=r"\(2, 5, 12\).*\(2, 4\)"):
        memory(torch.zeros(2, 5, 12), torch.zeros(2, 4))
    with pytest.raises(FusionShapeError, match="2 sequences"):
        memory(torch.zeros(2, 5, 12), torch.zeros(2, 5), history=RowCache())
