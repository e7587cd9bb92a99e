"""What integration tests share: a braid of two tiny models."""

from __future__ import annotations

from typing import Any

import pytest
from programs import tiny_braid_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A braid file of two tiny models, built once for a module. Tests change copies of it."""
    return tiny_braid_settings(tmp_path_factory.mktemp("models"))


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test in which loading models into its process fails."""

    def load(*_: object) -> None:
        raise AssertionError("models are loaded")

    monkeypatch.setattr("braid_orchestrator.training.reaching.load_here", load)
