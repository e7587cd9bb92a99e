"""Opens and closes the sessions of a sequence on everything its route needs: all or none. Knows no scheduling."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.lockstep import LockStep
from braid_orchestrator.engine.ports import Fusion, Shard
from braid_orchestrator.engine.sessions import BRAIDED, Sequence
from braid_rpc.errors import BraidError
from braid_rpc.steps import OpenSession


class Roster:
    """The sessions that one engine holds on its shards and in the fusion modules. Not thread-safe."""

    def __init__(self, shards: Many[Shard], fusion: Fusion, plan: BraidPlan, lockstep: LockStep) -> None:
        self._shards = shards
        self._fusion = fusion
        self._plan = plan
        self._lockstep = lockstep

    def open(self, sequence: Sequence) -> None:
        """Open a fresh session of the sequence on every shard of its route, with room for the tokens it has.

        Raises: what the first refusing part raised, after the others were closed again.
        """
        sequence.renew_session()
        opened: list[Shard | Fusion] = []
        try:
            for index in self._route(sequence):
                braided = sequence.route == BRAIDED
                end_layer = self._lockstep.end_layer(index) if braided else 0
                room = sequence.room(self._plan.lane_of[index] if braided else 0)
                self._shards[index].open([OpenSession(sequence.session_id, room, end_layer)])
                opened.append(self._shards[index])
            if self._uses_fusion(sequence):
                sequence.weights_version = self._fusion.open([sequence.session_id], sequence.weights_version)
        except BraidError:
            for part in opened:
                part.close([sequence.session_id])
            raise

    def close(self, sequences: Iterable[Sequence]) -> None:
        """Free the caches of the sequences everywhere, with one call per part."""
        closing = [sequence for sequence in sequences if sequence.session_id]
        for index, shard in enumerate(self._shards):
            ids = [s.session_id for s in closing if index in self._route(s)]
            if ids:
                shard.close(ids)
        ids = [s.session_id for s in closing if self._uses_fusion(s)]
        if ids:
            self._fusion.close(ids)
        self._lockstep.forget(sequence.session_id for sequence in closing)
        for sequence in closing:
            sequence.session_id = ""

    def ping(self) -> None:
        """Ask every part whether it is there. Raises: UnavailableError, DeadlineError."""
        for shard in self._shards:
            shard.close([])
        self._fusion.close([])

    def reconnect(self) -> None:
        """Start afresh everywhere; no session is left anywhere. Raises: UnavailableError."""
        for shard in self._shards:
            shard.reconnect()
        self._fusion.reconnect()
        self._lockstep.forget_all()

    def _route(self, sequence: Sequence) -> list[int]:
        return self._lockstep.braided_shards() if sequence.route == BRAIDED else [sequence.route]

    def _uses_fusion(self, sequence: Sequence) -> bool:
        return sequence.route == BRAIDED and (bool(self._plan.points) or self._plan.readout.kind != "anchor")
