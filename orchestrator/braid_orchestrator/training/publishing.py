"""Handing a trained version to those who serve: a braid by HTTP, or a fusion service by gRPC. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from braid_orchestrator.serving.probing import own_key_headers
from braid_rpc.errors import BraidError, ConflictError, UnavailableError, error_from_wire
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
        name: of the version there; empty: the service picks one, for the same weights always the same.

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


def check_target(target: str) -> None:
    """Ask who is there, as `publish_version` will be told it, so that a mistake shows before hours of training.

    Raises: BraidError, as the service answered; ConflictError if it takes no versions in; UnavailableError.
    """
    if target.startswith(("http://", "https://")):
        _ask(target, "GET", "/active", lambda found: str(found["active"]))
        return
    with FusionClient(target) as client:
        card = client.describe()
    if card.plan_hash and not card.max_publish_bytes:  # without a plan it can't say yet
        raise ConflictError(f"{target}: its fusion.max_publish_bytes is 0, so it takes no version in")


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
