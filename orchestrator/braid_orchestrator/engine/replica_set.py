"""Which replicas of one shard are connected: found, connected to, checked and let go. Knows no steps.

A thread looks for replicas and connects to new ones; whoever runs sessions on them calls everything else from one
thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from braid_orchestrator.engine.ports import Shard
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import BraidError, UnavailableError

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Member:
    """A connected replica and the sessions that were opened on it. One that ``is_leaving`` gets no more."""

    target: str
    shard: Shard
    sessions: set[str] = field(default_factory=set)
    is_leaving: bool = False


class ReplicaSet:
    """The replicas of one shard: all of one model, in one precision."""

    def __init__(
        self,
        name: str,
        find: Callable[[], Collection[str]],
        connect: Callable[[str], Shard],
        poll_s: float,
    ) -> None:
        """``find`` gives the targets that there are now; if it raises, the last ones count on.

        Raises: UnavailableError if there is none yet, or none that answers.
        """
        self.members: list[Member] = []
        self._name = name
        self._find = find
        self._connect = connect
        self._poll_s = poll_s
        self._lock = threading.Lock()  # of all below but the last, which both threads use
        self._polling = threading.Lock()
        self._arrivals: list[Member] = []
        self._held: set[str] = set()
        self._wanted: set[str] = set()
        self._complaints: dict[str, str] = {}
        self._stopping = threading.Event()
        self._poll()
        self.refresh()
        self.check_any()
        first = self.members[0].shard
        self.card: ShardCard = first.card
        self.tokenizer_json: str = first.tokenizer_json()
        self.chat_format: ChatFormat = first.chat_format()
        self._thread = threading.Thread(target=self._watch, name=f"replicas-{name}", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Take in who arrived, and let go who is leaving and has no sessions any more. Never waits."""
        with self._lock:
            arrived, self._arrivals = self._arrivals, []
            wanted = self._wanted
        self.members.extend(arrived)
        for member in list(self.members):
            member.is_leaving = member.target not in wanted
            if member.is_leaving and not member.sessions:
                self.drop(member)

    def by_load(self) -> list[Member]:
        """Where to open a session first: most free bytes, then fewest sessions; those that leave come last."""
        return sorted(
            self.members, key=lambda m: (m.is_leaving, -m.shard.card.cache_bytes_free, len(m.sessions))
        )

    def check_any(self) -> None:
        """Raises: UnavailableError if there is no replica, with what became of those that there were."""
        if not self.members:
            with self._lock:
                why = "; ".join(self._complaints.values()) or "none is known"
            raise UnavailableError(f"shard {self._name!r}: no replica to run on: {why}", retry_after_s=1.0)

    def drop(self, member: Member) -> None:
        """Let a replica go; it is connected to again when it is still there."""
        if member in self.members:
            self.members.remove(member)
            member.shard.shutdown()
            with self._lock:
                self._held.discard(member.target)

    def reconnect(self) -> None:
        """Start afresh, without sessions, on all that answer. Raises: UnavailableError if none does."""
        for member in list(self.members):
            member.sessions.clear()
            try:
                member.shard.reconnect()
            except BraidError as error:
                self._complain(member.target, error)
                self.drop(member)
        self.refresh()
        if not self.members:
            self._poll()
            self.refresh()
        self.check_any()

    def shutdown(self) -> None:
        """Let all go and look no more."""
        self._stopping.set()
        self._thread.join()
        self.refresh()
        for member in list(self.members):
            self.drop(member)

    def _watch(self) -> None:
        while not self._stopping.wait(self._poll_s):
            self._poll()

    def _poll(self) -> None:
        with self._polling:
            try:
                wanted = set(self._find())
            except BraidError as error:
                self._complain("", error)
                return
            with self._lock:
                self._wanted = wanted
                new = wanted - self._held
                self._complaints = {t: why for t, why in self._complaints.items() if t in new}
            for target in sorted(new):
                self._add(target)

    def _add(self, target: str) -> None:
        try:
            shard = self._connect(target)
        except BraidError as error:
            self._complain(target, error)
            return
        first = self._first_card()
        difference = "" if first is None else shard.card.difference_from(first)
        if difference:
            shard.shutdown()
            complaint = f"the replica at {target} is another one than the others: got {difference}"
            self._complain(target, UnavailableError(complaint))
            return
        with self._lock:
            self._complaints.pop(target, None)
            self._held.add(target)
            self._arrivals.append(Member(target, shard))

    def _first_card(self) -> ShardCard | None:
        if hasattr(self, "card"):
            return self.card
        with self._lock:
            return self._arrivals[0].shard.card if self._arrivals else None

    def _complain(self, target: str, error: BraidError) -> None:
        """Once, not every time."""
        with self._lock:
            is_new = self._complaints.get(target) != error.message
            self._complaints[target] = error.message
        if is_new:
            _log.warning("replicas of shard %r: %s", self._name, error.message)
