"""A version of the weights that comes in: checked as early as can be, kept whole or not at all. Knows no wire."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from braid_fusion.errors import CorruptWeights
from braid_fusion.packed_weights import PackedWeights, WeightCard, check_plan, parse_card, version_name
from braid_rpc.errors import ConflictError, InvalidRequestError
from braid_rpc.publishing import PublishedVersion, check_card
from braid_services.fusion.translation import braid_errors
from braid_services.fusion.version_names import check_new_name
from braid_services.fusion.versions import Versions


@dataclass(frozen=True, slots=True)
class Announced:
    """What a publisher says before the weights come: the name (empty: `version_name`'s), the card, and how many bytes
    of which SHA-256 there will be."""

    version: str
    card_json: str
    num_bytes: int
    sha256: str
    activate: bool


class Upload:
    """One version on its way in. What has come is in memory until `finish`; whoever leaves before leaves nothing."""

    def __init__(self, announced: Announced, find_versions: Callable[[], Versions], max_bytes: int) -> None:
        """Check all that can be before the weights are there.

        Args:
            find_versions: those that are served now; another plan may be prepared in the meantime.
            max_bytes: that the weights may have.

        Raises: InvalidRequestError, WeightMismatchError; ConflictError if another version has the name.
        """
        self._announced = announced
        self._find_versions = find_versions
        self._versions = find_versions()
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        check_size(announced.num_bytes, max_bytes)
        self._card = self._checked_card()
        self._versions.holds(self._card, announced.card_json)

    def add(self, chunk: bytes) -> None:
        """The next bytes. Raises: InvalidRequestError if these are more than were announced."""
        self._num_bytes += len(chunk)
        if self._num_bytes > self._announced.num_bytes:
            raise InvalidRequestError(
                f"weights: got {self._num_bytes} bytes so far, expected {self._announced.num_bytes} as announced"
            )
        self._chunks.append(chunk)

    def finish(self) -> PublishedVersion:
        """All has come: keep it, and activate it if that was asked for.

        Raises: InvalidRequestError for bytes that are not what was announced, or no weights; WeightMismatchError;
            StorageError; ConflictError if another version has come to have the name, or another plan was prepared.
            After any of them all is as it was.
        """
        announced, versions = self._announced, self._versions
        if self._num_bytes != announced.num_bytes:
            raise InvalidRequestError(
                f"weights: got {self._num_bytes} bytes and no more, expected {announced.num_bytes} as announced"
            )
        data = b"".join(self._chunks)
        self._chunks.clear()
        found = hashlib.sha256(data).hexdigest()
        if found != announced.sha256:
            raise InvalidRequestError(
                f"weights: got bytes of SHA-256 {found[:16]}…, expected {announced.sha256[:16]}… as announced"
            )
        if self._find_versions() is not versions:
            raise ConflictError(
                f"publish: another plan than {versions.plan.hash()} was prepared while the weights came in"
            )
        weights = PackedWeights(announced.card_json, data)
        with _publishers_errors():
            versions.publish(self._card, weights, activate=announced.activate)
        return PublishedVersion(self._card.version, versions.active, versions.in_memory_only)

    def _checked_card(self) -> WeightCard:
        announced = self._announced
        name = name_for(announced.version, announced.card_json)
        with _publishers_errors():
            card = parse_card(name, announced.card_json, "card")
            check_plan(card, self._versions.plan)
        if card.weights_sha256 != announced.sha256:
            raise InvalidRequestError(
                f"card: got weights_sha256 {card.weights_sha256[:16]!r}…, expected that of the weights as announced, "
                f"{announced.sha256[:16]!r}…"
            )
        return card


def name_for(version: str, card_json: str) -> str:
    """What a new version will be called if ``version`` was asked for; empty: what `version_name` makes of its card.

    Raises: InvalidRequestError for a name that can't be one, or a card that can't.
    """
    check_card(card_json)
    if version:
        check_new_name(version)
        return version
    with _publishers_errors():
        return version_name(card_json)


@contextmanager
def _publishers_errors() -> Iterator[None]:
    """What is damaged is the publisher's, not ours."""
    with braid_errors():
        try:
            yield
        except CorruptWeights as error:
            raise InvalidRequestError(str(error)) from error


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Whether weights of so many bytes are taken in where at most ``max_bytes`` are. Raises: InvalidRequestError;
    ConflictError if none are."""
    if not max_bytes:
        raise ConflictError("publish: fusion.max_publish_bytes is 0 here, so no version is taken in")
    if num_bytes > max_bytes:
        raise InvalidRequestError(
            f"weights: got {num_bytes} bytes, expected at most {max_bytes}, as this plan's tensors and "
            "fusion.max_publish_bytes have it"
        )
