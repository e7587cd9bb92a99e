"""What an orchestrator's tie to others needs of its engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from braid_orchestrator.engine.requests import Event, GenerateRequest
from braid_orchestrator.engine.sessions import Sink
from braid_rpc.publishing import PublishedVersion


class Runs(Protocol):
    """What is used of an engine."""

    @property
    def weights_version(self) -> str:
        """The version that new sessions get."""

    def activate(self, version: str) -> None:
        """Use another version for sessions opened from now on."""

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have."""

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in a version of the weights."""

    def submit(self, request: GenerateRequest, sink: Sink) -> str:
        """Take a request in."""

    def resume(self, request: GenerateRequest, events: Sequence[Event], sink: Sink) -> str:
        """Carry on a request that was begun elsewhere."""
