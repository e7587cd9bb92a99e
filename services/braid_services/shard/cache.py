"""Keys and values of sessions, in blocks, under one bound in bytes. Knows no model and no order of steps.

Shapes: J key heads, K key width, V value width, C capacity in tokens (a multiple of the block).
A session's cache holds, per layer that is run for it, keys (1, J, C, K) and values (1, J, C, V), contiguous.
Nothing here locks: whoever owns the pool calls it under one lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_rpc.errors import CacheFullError
from braid_services.shard.attention import AttentionRule, LayerShape, MaskCache, attend_rows

RETRY_AFTER_S = 1.0


class SessionCache:
    """The cache of one session. ``length`` tokens are committed; rows beyond belong to a batch under way.

    ``reserved_blocks`` were promised when the session was opened and stay until it is closed.
    """

    __slots__ = (
        "end_layer",
        "is_open",
        "keys",
        "last_used_s",
        "length",
        "num_blocks",
        "reserved_blocks",
        "values",
    )

    def __init__(self, end_layer: int, reserved_blocks: int, now_s: float) -> None:
        self.end_layer = end_layer
        self.reserved_blocks = reserved_blocks
        self.num_blocks = 0
        self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.last_used_s = now_s
        self.is_open = True


@dataclass(frozen=True, slots=True)
class Resize:
    """A session and the number of blocks it shall have."""

    session: SessionCache
    num_blocks: int


class CachePool:
    """All sessions' caches of one shard, admitted by bytes, at most ``total_bytes`` together."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        dtype: torch.dtype,
        device: torch.device,
        total_bytes: int,
        block_tokens: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_bytes = total_bytes
        self.block_tokens = block_tokens
        self.ttl_s = ttl_s
        self._layers = tuple(layers)
        self._dtype = dtype
        self._device = device
        self._clock = clock
        self._sessions: set[SessionCache] = set()
        self._bytes_used = 0
        self._next_eviction_s = clock() + ttl_s
        # Bytes of one block over the first n layers, for every n.
        self._block_bytes = [0]
        for shape in layers:
            row = shape.num_heads * (shape.key_width + shape.value_width) * dtype.itemsize
            self._block_bytes.append(self._block_bytes[-1] + row * block_tokens)

    @property
    def bytes_free(self) -> int:
        """What further blocks may take."""
        return self.total_bytes - self._bytes_used

    @property
    def num_sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def open(self, wanted: Sequence[tuple[int, int]]) -> list[SessionCache]:
        """Open one session per (number of tokens, end layer): all or none. Raises: CacheFullError."""
        now_s = self._clock()
        sessions = [SessionCache(end_layer, self.num_blocks(tokens), now_s) for tokens, end_layer in wanted]
        self.resize([Resize(session, session.reserved_blocks) for session in sessions])
        self._sessions.update(sessions)
        return sessions

    def resize(self, wanted: Sequence[Resize], instead_of: Sequence[Resize] = ()) -> None:
        """Give every session its number of blocks: all or none. Committed rows are kept.

        ``instead_of`` undoes, as part of the same change, what a batch now given up had taken: its sessions
        with the blocks from before it. Raises: CacheFullError, with nothing changed.
        """
        targets = {id(resize.session): resize for resize in (*instead_of, *wanted) if resize.session.is_open}
        changes = [r for r in targets.values() if r.num_blocks != r.session.num_blocks]
        if not changes:
            return
        extra_bytes = sum(
            (r.num_blocks - r.session.num_blocks) * self._block_bytes[r.session.end_layer] for r in changes
        )
        if extra_bytes > self.bytes_free:
            raise CacheFullError(
                f"key-value cache: {extra_bytes} bytes wanted, {self.bytes_free} of {self.total_bytes} free",
                retry_after_s=RETRY_AFTER_S,
            )
        try:
            moved = [self._moved(r.session, r.num_blocks) for r in changes]
        except (MemoryError, RuntimeError) as error:  # torch reports a failed allocation as RuntimeError
            message = (
                f"key-value cache: {extra_bytes} bytes wanted, but the device has no memory left: {error}"
            )
            raise CacheFullError(message, retry_after_s=RETRY_AFTER_S) from error
        for resize, (keys, values) in zip(changes, moved, strict=True):
            resize.session.keys, resize.session.values = keys, values
            resize.session.num_blocks = resize.num_blocks
        self._bytes_used += extra_bytes

    def crop(self, session: SessionCache, length: int) -> None:
        """Forget rows from ``length`` on; blocks beyond those promised at open are freed."""
        session.length = length
        session.last_used_s = self._clock()
        self.resize([Resize(session, max(self.num_blocks(length), session.reserved_blocks))])

    def close(self, sessions: Iterable[SessionCache]) -> None:
        """Free everything the sessions hold. Closing twice is harmless."""
        for session in sessions:
            if session.is_open:
                session.is_open = False
                session.keys, session.values = [], []
                self._bytes_used -= session.num_blocks * self._block_bytes[session.end_layer]
                session.num_blocks = 0
                self._sessions.discard(session)

    def touch(self, sessions: Iterable[SessionCache]) -> None:
        """Note that the sessions were used just now."""
        now_s = self._clock()
        for session in sessions:
            session.last_used_s = now_s

    def evict_idle(self) -> int:
        """Close sessions not used for the time to live; returns how many. Costs nothing while none can be."""
        now_s = self._clock()
        if now_s < self._next_eviction_s:
            return 0
        idle = [session for session in self._sessions if now_s - session.last_used_s >= self.ttl_s]
        self.close(idle)
        self._next_eviction_s = self.ttl_s + min((s.last_used_s for s in self._sessions), default=now_s)
        return len(idle)

    def _moved(self, session: SessionCache, num_blocks: int) -> tuple[list[Tensor], list[Tensor]]:
        """The session's rows in tensors of another capacity."""
        capacity = num_blocks * self.block_tokens
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer_idx, shape in enumerate(self._layers[: session.end_layer]):
            for rows, width, old in (
                (keys, shape.key_width, session.keys),
                (values, shape.value_width, session.values),
            ):
                new = torch.empty(
                    (1, shape.num_heads, capacity, width), dtype=self._dtype, device=self._device
                )
                if session.length:
                    new[:, :, : session.length] = old[layer_idx][:, :, : session.length]
                rows.append(new)
        return keys, values


@dataclass(frozen=True, slots=True)
class CachedRows:
    """The next ``num_rows`` rows of a packed batch, at ``position`` of a session."""

    session: SessionCache
    position: int
    num_rows: int


class CachedAttention:
    """A packed batch whose keys and values are appended to its sessions' caches and read from there."""

    def __init__(self, rows: Sequence[CachedRows]) -> None:
        self._rows = rows
        self._masks: MaskCache = {}

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """As `attention.PackedAttention.attend`."""
        if len(self._rows) == 1:
            return self._attend_one(self._rows[0], layer_idx, query, key, value, rule)
        counts = [rows.num_rows for rows in self._rows]
        split = (torch.split(packed, counts, dim=2) for packed in (query, key, value))
        parts = zip(self._rows, *split, strict=True)
        return torch.cat([self._attend_one(rows, layer_idx, q, k, v, rule) for rows, q, k, v in parts], dim=1)

    def _attend_one(
        self, rows: CachedRows, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """Append one session's rows to its cache and let them attend to all of it."""
        keys, values = rows.session.keys[layer_idx], rows.session.values[layer_idx]
        keys.narrow(2, rows.position, rows.num_rows).copy_(key)
        values.narrow(2, rows.position, rows.num_rows).copy_(value)
        end = rows.position + rows.num_rows
        return attend_rows(query, keys.narrow(2, 0, end), values.narrow(2, 0, end), rule, self._masks)
