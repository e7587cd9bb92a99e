"""Which sequences run, which wait, and what one step packs. Knows no shards and no models.

First come, first served. A step takes one row of every decoding sequence, then fills up with chunks of the
texts that are still being read, so that a long new prompt doesn't stall those that already write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.packing import Work
from braid_orchestrator.engine.sessions import ScoredSequence, Sequence
from braid_rpc.errors import QueueFullError


class Scheduler:
    """The waiting and the running. Not thread-safe."""

    def __init__(self, limits: LimitsConfig, max_logit_rows: int) -> None:
        """``max_logit_rows`` of one step, at least two, fit into a message."""
        self._limits = limits
        self._max_logit_rows = max_logit_rows
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def running(self) -> tuple[Sequence, ...]:
        """In the order in which they were admitted."""
        return tuple(self._running)

    @property
    def num_running(self) -> int:
        """How many sequences run."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """How many sequences wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([*self._running, *self._waiting])

    def check_room(self, num_sequences: int, retry_after_s: float) -> None:
        """Raises: QueueFullError if that many more can't wait."""
        if len(self._waiting) + num_sequences > self._limits.max_waiting:
            raise QueueFullError(
                f"queue full: got {num_sequences} more to {len(self._waiting)} waiting, expected at most "
                f"{self._limits.max_waiting}; try again in {retry_after_s:.0f} s",
                retry_after_s=retry_after_s,
            )

    def enqueue(self, sequences: Iterable[Sequence]) -> None:
        """To the end of the queue."""
        self._waiting.extend(sequences)

    def admit(self, open_session: Callable[[Sequence], bool]) -> None:
        """Move waiting sequences to the running ones as long as ``open_session`` finds room for them."""
        while self._waiting and len(self._running) < self._limits.max_running:
            if not open_session(self._waiting[0]):
                return
            self._running.append(self._waiting.popleft())

    def send_back(self, sequences: Iterable[Sequence]) -> None:
        """Running sequences whose caches are gone wait again, before all others, in their old order."""
        returned = list(sequences)
        for sequence in returned:
            self._running.remove(sequence)
        self._waiting.extendleft(reversed(returned))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def next_works(self) -> list[Work]:
        """What the next step runs: decoding sequences first, then texts still being read, oldest first."""
        budget = self._limits.max_batch_tokens
        logit_budget = self._max_logit_rows
        works: list[Work] = []
        for sequence in sorted(self._running, key=lambda s: s.num_pending > 1):
            most = min(sequence.num_pending, budget, self._limits.prefill_chunk)
            # Shards with other tokenizers give one more: their last row, for steps in which they have none.
            kept = 0 if sequence.woven is None else 1
            if isinstance(sequence, ScoredSequence):
                most = min(most, sequence.max_rows, logit_budget - kept)
            if most <= 0:
                continue
            most, largest = sequence.fitting_rows(most, budget)
            rows = sequence.wanted_rows(most)
            if len(rows) + kept > logit_budget:
                continue
            works.append(Work(sequence, most, rows))
            budget -= largest
            logit_budget -= len(rows) + kept
        return works
