"""Handing a trained version to those who serve: a braid by HTTP, or a fusion service by gRPC. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from braid_fusion.packed_weights import pack_stack, plan_differences
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.serving.probing import own_key_headers
from braid_rpc.errors import (
    BraidError,
    ConflictError,
    InvalidRequestError,
    UnavailableError,
    WeightMismatchError,
    error_from_wire,
)
from braid_rpc.fusion_client import FusionClient
from braid_rpc.publishing import PublishedVersion, publish_timeout_s
from braid_rpc.version_archive import CARD_FILE, WEIGHTS_FILE, write_archive

TIMEOUT_S = 60.0

AnswerT = TypeVar("AnswerT")


def publish_version(weights: Path, target: str, name: str = "") -> PublishedVersion:
    """Publish and activate a version.

    Args:
        weights: the version's folder.
        target: a running braid as ``http://host:port``, or a fusion service as ``host:port`` or ``unix:/path``.
        name: of the version there; empty: the service picks one, for the same card and weights always the same.

    Raises: BraidError, as the service answered; UnavailableError.
    """
    card_json = (weights / CARD_FILE).read_text(encoding="utf-8")
    data = (weights / WEIGHTS_FILE).read_bytes()
    if target.startswith(("http://", "https://")):
        return _by_http(card_json, data, target, name)
    with FusionClient(target) as client:
        if not client.describe().plan_hash:  # no orchestrator has told it its plan yet
            client.prepare(json.dumps(json.loads(card_json)["plan"]))
        return client.publish(card_json, data, name)


@dataclass(frozen=True, slots=True)
class PublishTarget:
    """Whom `publish_version` is to send a version, with what it said beforehand of those that it takes in. What it
    didn't say is None: a fusion service without a plan can't, and will take that of the version."""

    target: str
    plan: BraidPlan | None = None
    max_publish_bytes: int | None = None

    def check(self, stack: FusionStack) -> None:
        """Whether a version of these modules will be taken in. Nobody is asked again.

        Raises: WeightMismatchError, naming each field in which the plans differ; InvalidRequestError for too many
            bytes.
        """
        if self.plan is not None:
            unlike = plan_differences(stack.plan, self.plan, self.target, "this run has")
            if unlike:
                raise WeightMismatchError(
                    f"{self.target}: got plan {self.plan.hash()}, expected that of this run, {stack.plan.hash()}: "
                    f"{'; '.join(unlike)}"
                )
        if self.max_publish_bytes is not None:
            num_bytes = len(pack_stack(stack).data)
            if num_bytes > self.max_publish_bytes:
                raise InvalidRequestError(
                    f"{self.target}: got weights of {num_bytes} bytes to publish there, expected at most "
                    f"{self.max_publish_bytes}, its fusion.max_publish_bytes"
                )


def ask_target(target: str) -> PublishTarget:
    """Who is there, and what it takes in, so that a mistake shows before hours of training; ``target`` as for
    `publish_version`.

    Raises: BraidError, as the service answered; ConflictError if it takes no versions in; UnavailableError.
    """
    if target.startswith(("http://", "https://")):
        asked = _ask(target, "GET", "/active", lambda found: _told(target, found))
    else:
        with FusionClient(target) as client:
            card = client.describe()
        # Without a plan it can't say yet.
        asked = PublishTarget(
            target,
            _plan(target, card.plan_json) if card.plan_json else None,
            card.max_publish_bytes if card.plan_hash else None,
        )
    if asked.max_publish_bytes == 0:
        raise ConflictError(f"{target}: its fusion.max_publish_bytes is 0, so it takes no version in")
    return asked


def _told(url: str, found: Any) -> PublishTarget:
    # Earlier braids tell the name alone.
    active, plan, max_bytes = found["active"], found.get("plan"), found.get("max_publish_bytes")
    if not isinstance(active, str) or not isinstance(max_bytes, int | None):
        raise TypeError("not what a braid says")
    return PublishTarget(url, None if plan is None else _plan(url, json.dumps(plan)), max_bytes)


def _plan(target: str, plan_json: str) -> BraidPlan:
    try:
        return BraidPlan.from_json(plan_json)
    except (ValueError, KeyError, TypeError) as error:
        raise BraidError(
            f"{target}: got a plan that can't be read ({type(error).__name__}: {error}), expected one that this "
            "version of braid could have made"
        ) from error


def _by_http(card_json: str, data: bytes, url: str, name: str) -> PublishedVersion:
    body = write_archive(card_json, data)
    return _ask(
        url,
        "POST",
        "",
        lambda found: PublishedVersion(found["version"], found["active"], found["in_memory_only"]),
        params={"version": name},
        content=body,
        headers={"Content-Type": "application/x-tar"},
        timeout=publish_timeout_s(TIMEOUT_S, len(body)),
    )


def _ask(
    url: str,
    method: str,
    path: str,
    take: Callable[[Any], AnswerT],
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
    **request: Any,
) -> AnswerT:
    """What ``take`` makes of a braid's answer about its versions."""
    try:
        answer = httpx.request(
            method,
            f"{url.rstrip('/')}/v1/fusion/versions{path}",
            headers={**(headers or {}), **own_key_headers()},
            timeout=timeout,
            trust_env=False,
            **request,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{url}: no answer: {error}") from error
    try:
        found = answer.json()
        if answer.is_success:
            return take(found)
        refused = found["error"]
        raise error_from_wire(refused["type"], "", f"{url}: {refused['message']}")
    except (ValueError, KeyError, TypeError) as error:
        raise BraidError(
            f"{url}: got {answer.status_code} with {answer.text[:80]!r}, expected a braid's answer"
        ) from error
