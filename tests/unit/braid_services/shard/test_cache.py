"""Admission by bytes, growth in blocks, eviction: whatever happens, the books balance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid_rpc.errors import CacheFullError
from braid_services.shard.attention import LayerShape
from braid_services.shard.cache import CachePool, Resize, SessionCache

SHAPES = [LayerShape(2, 4, 4), LayerShape(1, 8, 6)]
BLOCK = 4
LAYER_BYTES = [BLOCK * 2 * (4 + 4) * 4, BLOCK * 1 * (8 + 6) * 4]
TTL_S = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_pool(total_bytes: int = 10_000, clock: Clock | None = None) -> CachePool:
    return CachePool(
        SHAPES,
        dtype=torch.float32,
        device=torch.device("cpu"),
        total_bytes=total_bytes,
        block_tokens=BLOCK,
        ttl_s=TTL_S,
        clock=clock or Clock(),
    )


def held_bytes(session: SessionCache) -> int:
    return sum(tensor.nbytes for tensor in (*session.keys, *session.values))


def test_what_is_counted_is_what_is_held() -> None:
    pool = make_pool()
    whole, first_layer, nothing = pool.open([(BLOCK + 1, 2), (1, 1), (0, 2)])
    assert held_bytes(whole) == 2 * sum(LAYER_BYTES)
    assert held_bytes(first_layer) == LAYER_BYTES[0]
    assert held_bytes(nothing) == 0
    assert pool.bytes_free == 10_000 - 2 * sum(LAYER_BYTES) - LAYER_BYTES[0]


def test_growing_keeps_committed_rows_and_cropping_frees() -> None:
    pool = make_pool()
    (session,) = pool.open([(3, 2)])
    for layer in range(2):
        session.keys[layer].fill_(layer + 1.0)
        session.values[layer].fill_(-layer - 1.0)
    session.length = 3
    pool.resize([Resize(session, 5)])
    for layer in range(2):
        assert session.keys[layer].shape[2] == 5 * BLOCK
        assert bool((session.keys[layer][:, :, :3] == layer + 1.0).all())
        assert bool((session.values[layer][:, :, :3] == -layer - 1.0).all())
    pool.crop(session, 1)
    assert session.num_blocks == 1
    pool.close([session, session])
    assert pool.bytes_free == pool.total_bytes


def test_growth_is_all_or_none_and_the_message_says_how_much_is_missing() -> None:
    pool = make_pool(total_bytes=5 * sum(LAYER_BYTES))
    one, other = pool.open([(BLOCK, 2), (BLOCK, 2)])
    with pytest.raises(
        CacheFullError, match=f"{4 * sum(LAYER_BYTES)} bytes wanted, {3 * sum(LAYER_BYTES)} of"
    ):
        pool.resize([Resize(one, 3), Resize(other, 3)])
    assert (one.num_blocks, other.num_blocks) == (1, 1)
    pool.resize([Resize(one, 4)])
    with pytest.raises(CacheFullError):
        pool.resize([Resize(other, 3)])
    pool.resize([Resize(other, 3)], instead_of=[Resize(one, 1)])
    assert (one.num_blocks, other.num_blocks) == (1, 3)


def test_a_device_without_memory_refuses_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    (session,) = pool.open([(BLOCK, 2)])
    make, made = torch.empty, []

    def fails_on_the_third(*args: object, **kwargs: object) -> torch.Tensor:
        made.append(args)
        if len(made) == 3:
            raise RuntimeError("out of memory")
        return make(*args, **kwargs)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", fails_on_the_third)
    free = pool.bytes_free
    with pytest.raises(CacheFullError, match="no memory left: out of memory"):
        pool.resize([Resize(session, 2)])
    assert pool.bytes_free == free
    assert held_bytes(session) == sum(LAYER_BYTES)


def test_only_sessions_idle_for_the_time_to_live_are_evicted() -> None:
    clock = Clock()
    pool = make_pool(clock=clock)
    idle, used = pool.open([(BLOCK, 2), (BLOCK, 2)])
    clock.now = 9.0
    assert pool.evict_idle() == 0
    pool.touch([used])
    clock.now = 10.0
    assert pool.evict_idle() == 1
    assert not idle.is_open
    assert held_bytes(idle) == 0
    assert used.is_open
    clock.now = 18.9
    assert pool.evict_idle() == 0
    clock.now = 19.0
    assert pool.evict_idle() == 1
    assert pool.bytes_free == pool.total_bytes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("orcxt"), st.integers(0, 5), st.integers(0, 30)), max_size=40))
def test_free_bytes_always_are_the_total_less_what_is_held(actions: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    pool = make_pool(total_bytes=12 * sum(LAYER_BYTES), clock=clock)
    sessions: list[SessionCache] = []
    for action, which, amount in actions:
        session = sessions[which % len(sessions)] if sessions else None
        before = pool.bytes_free
        try:
            if action == "o":
                sessions += pool.open([(amount, 1 + which % 2)])
            elif action == "r" and session:
                pool.resize([Resize(session, max(pool.num_blocks(session.length), amount // BLOCK))])
            elif action == "c" and session and session.is_open:
                pool.crop(session, min(amount, session.length))
            elif action == "x" and session:
                pool.close([session])
            elif action == "t":
                clock.now += amount / 5
                pool.evict_idle()
        except CacheFullError:
            assert pool.bytes_free == before
        assert pool.bytes_free == pool.total_bytes - sum(held_bytes(s) for s in sessions) >= 0
    pool.close(sessions)
    assert pool.bytes_free == pool.total_bytes
