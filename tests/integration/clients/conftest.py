"""One braid for all clients of a module, and no way out to any network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Served, served


@pytest.fixture(scope="module")
def braid() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(braid: Served) -> Iterator[None]:
    yield
    braid.wait_until_idle()


@pytest.fixture(autouse=True)
def straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients find a proxy, or somebody's key, in the environment."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
