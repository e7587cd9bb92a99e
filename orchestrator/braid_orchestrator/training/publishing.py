"""Handing a trained version to those who serve: a braid by HTTP, or a fusion service by gRPC. Trains nothing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from braid_orchestrator.serving.probing import own_key_headers
from braid_rpc.errors import BraidError, UnavailableError, error_from_wire
from braid_rpc.fusion_client import FusionClient
from braid_rpc.publishing import PublishedVersion, publish_timeout_s
from braid_rpc.version_archive import CARD_FILE, WEIGHTS_FILE, write_archive

TIMEOUT_S = 60.0


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


def _by_http(card_json: str, data: bytes, url: str, name: str) -> PublishedVersion:
    body = write_archive(card_json, data)
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/v1/fusion/versions",
            params={"version": name},
            content=body,
            headers={"Content-Type": "application/x-tar", **own_key_headers()},
            timeout=publish_timeout_s(TIMEOUT_S, len(body)),
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise UnavailableError(f"{url}: no answer: {error}") from error
    try:
        found = answer.json()
        if answer.is_success:
            return PublishedVersion(found["version"], found["active"], found["in_memory_only"])
        refused = found["error"]
        raise error_from_wire(refused["type"], "", f"{url}: {refused['message']}")
    except (ValueError, KeyError, TypeError) as error:
        raise BraidError(
            f"{url}: got {answer.status_code} with {answer.text[:80]!r}, expected a braid's answer"
        ) from error
