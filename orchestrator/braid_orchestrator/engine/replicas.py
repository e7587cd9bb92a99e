"""Several replicas of one shard as one `Shard`: sessions stay where they were opened, load says where that is.

A packed batch is split by session into one batch per replica; all are sent before any answer is awaited, and the
answers come back as one, in the rows' order. A replica that fails takes its sessions with it: the call raises
`UnavailableError`, upon which the engine runs them again elsewhere. Who comes and goes is noticed by a thread of
its own, which also connects; the engine's thread only takes in what is ready.

Shapes: T packed rows, R logit rows, D the shard's width, V its vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch import Tensor

from braid_orchestrator.engine.ports import Shard
from braid_orchestrator.engine.replica_set import Member, ReplicaSet
from braid_orchestrator.engine.splitting import Share, merge, split
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import BraidError, CacheFullError, DeadlineError, UnavailableError, UnknownSessionError
from braid_rpc.steps import OpenSession, SpanResult, SpanStep

_LOST = (UnavailableError, DeadlineError)


class ReplicatedShard:
    """A `Shard` over all replicas that ``find`` knows, by their gRPC targets."""

    def __init__(
        self,
        name: str,
        find: Callable[[], Collection[str]],
        connect: Callable[[str], Shard],
        poll_s: float,
    ) -> None:
        """Connect to those that are there, and look again every ``poll_s``.

        Raises: UnavailableError if there are none yet, or none that answers.
        """
        self._name = name
        self._replicas = ReplicaSet(name, find, connect, poll_s)
        self._owners: dict[str, Member] = {}
        self._shares: list[Share] = []
        self._started: deque[tuple[SpanStep[Tensor], list[Share]]] = deque()

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._name

    @property
    def card(self) -> ShardCard:
        """That of any replica, with the room and the sessions of all together."""
        cards = [member.shard.card for member in self._replicas.members]
        return replace(
            self._replicas.card,
            cache_bytes_free=sum(card.cache_bytes_free for card in cards),
            cache_bytes_total=sum(card.cache_bytes_total for card in cards),
            num_sessions=sum(card.num_sessions for card in cards),
        )

    @property
    def num_replicas(self) -> int:
        """How many there are to run on."""
        return len(self._replicas.members)

    @property
    def num_bytes(self) -> int:
        """Of all messages over the present connections, both ways."""
        return sum(member.shard.num_bytes for member in list(self._replicas.members))

    def open(self, sessions: Sequence[OpenSession]) -> None:
        """See `ports.Shard`."""
        self._replicas.refresh()
        opened: list[str] = []
        try:
            for session in sessions:
                self._open(session)
                opened.append(session.session_id)
        except BraidError:
            self.close(opened)
            raise

    def send_step(self, step: SpanStep[Tensor]) -> None:
        """See `ports.Shard`."""
        if step.token_ids is not None:
            self._shares = split(step, self._owner)
        shares = self._shares
        for position, share in enumerate(shares):
            try:
                share.owner.shard.send_step(share.part(step))
            except _LOST as error:
                for sent in shares[:position]:  # what was asked for is taken, or streams would be out of step
                    self._receive(sent, [])
                self._drop(share.owner)
                raise self._lost(error) from error
        self._started.append((step, shares))

    def receive_step(self) -> SpanResult[Tensor]:
        """See `ports.Shard`. The timings are those of the slowest replica."""
        step, shares = self._started.popleft()
        failures: list[BraidError] = []
        answers = [(share, self._receive(share, failures)) for share in shares]
        if failures:
            if step.final:
                for share, result in answers:
                    if result is not None:
                        self._take_back(share)
            raise next((error for error in failures if isinstance(error, _LOST)), failures[0])
        results = [result for _, result in answers if result is not None]
        to_the_head = step.end_layer == self._replicas.card.num_layers
        return merge(shares, results, to_the_head, self.card.cache_bytes_free)

    def crop(self, session_id: str, length: int) -> None:
        """See `ports.Shard`."""
        owner = self._owner(session_id)
        try:
            owner.shard.crop(session_id, length)
        except _LOST as error:
            self._drop(owner)
            raise self._lost(error) from error

    def close(self, session_ids: Sequence[str]) -> None:
        """See `ports.Shard`. Without sessions: asks every replica whether it is there."""
        self._replicas.refresh()
        lost: BraidError | None = None
        leaving: dict[int, list[str]] = {}
        for session_id in session_ids:
            owner = self._owners.pop(session_id, None)
            if owner is not None:
                owner.sessions.discard(session_id)
                leaving.setdefault(id(owner), []).append(session_id)
        for member in list(self._replicas.members):
            ids = leaving.get(id(member), [])
            if not ids and session_ids:
                continue
            try:
                member.shard.close(ids)
            except _LOST as error:
                if self._drop(member):
                    lost = error
        if lost is not None:
            raise self._lost(lost)
        self._replicas.check_any()

    def tokenizer_json(self) -> str:
        """See `ports.Shard`."""
        return self._replicas.tokenizer_json

    def chat_format(self) -> ChatFormat:
        """See `ports.Shard`."""
        return self._replicas.chat_format

    def reconnect(self) -> None:
        """See `ports.Shard`: on all replicas that answer. Raises: UnavailableError if none does."""
        self._owners.clear()
        self._started.clear()
        self._shares = []
        self._replicas.reconnect()

    def shutdown(self) -> None:
        """See `ports.Shard`."""
        self._replicas.shutdown()

    def _open(self, session: OpenSession) -> None:
        full: CacheFullError | None = None
        for member in self._replicas.by_load():
            try:
                member.shard.open([session])
            except CacheFullError as error:
                full = full or error
            except _LOST as error:
                if self._drop(member):
                    raise self._lost(error) from error
            else:
                member.sessions.add(session.session_id)
                self._owners[session.session_id] = member
                return
        self._replicas.check_any()
        raise full or UnavailableError(f"shard {self._name!r}: no replica answers", retry_after_s=1.0)

    def _owner(self, session_id: str) -> Member:
        owner = self._owners.get(session_id)
        if owner is None:
            raise UnknownSessionError(f"shard {self._name!r}: no replica has session {session_id!r}")
        return owner

    def _receive(self, share: Share, failures: list[BraidError]) -> SpanResult[Tensor] | None:
        try:
            return share.owner.shard.receive_step()
        except _LOST as error:
            self._drop(share.owner)
            failures.append(self._lost(error))
        except BraidError as error:
            failures.append(error)
        return None

    def _take_back(self, share: Share) -> None:
        """A batch counts on all replicas or on none."""
        try:
            for segment in share.segments:
                share.owner.shard.crop(segment.session_id, segment.position)
        except _LOST:
            self._drop(share.owner)

    def _drop(self, member: Member) -> bool:
        """A replica is gone; whether sessions went with it."""
        self._replicas.drop(member)
        for session_id in member.sessions:
            self._owners.pop(session_id, None)
        return bool(member.sessions)

    def _lost(self, error: BraidError) -> UnavailableError:
        left = len(self._replicas.members)
        return UnavailableError(f"{error.message} (a replica was lost, {left} left)", retry_after_s=1.0)
