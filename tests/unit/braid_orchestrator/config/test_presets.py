"""Presets say what a configuration doesn't, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from braid_orchestrator.config.presets import PRESETS
from braid_orchestrator.config.schema import parse_braid_config
from braid_orchestrator.config.values import BraidingConfig, ReadoutConfig
from braid_rpc.errors import ConfigError


def settings(**others: Any) -> dict[str, Any]:
    shards = [{"name": "large", "model": "x"}, {"name": "small", "model": "y"}]
    return {"anchor": "large", "shards": shards, **others}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_what_is_not_said(name: str) -> None:
    preset = PRESETS[name]
    braid = parse_braid_config(settings(preset=name))
    assert [point.at for point in braid.points] == [0.25, 0.5, 0.75]
    assert all(
        (point.strategy, point.injection, point.options)
        == (preset.strategy, preset.injection, preset.options)
        for point in braid.points
    )
    assert braid.readout == ReadoutConfig(preset.readout)
    assert braid.braiding == BraidingConfig()  # nothing could decide
    decided = parse_braid_config(settings(preset=name, braiding={"decide": "by_looks"})).braiding
    assert decided.default == ("auto" if preset.decides else True)


def test_what_is_said_counts() -> None:
    said = {
        "points": [{"at": 1, "strategy": "router"}],
        "readout": "anchor",
        "braiding": {"default": False, "decide": "by_looks"},
    }
    with_preset = parse_braid_config(settings(preset="domain", **said))
    without = parse_braid_config(settings(**said))
    assert (with_preset.points, with_preset.readout) == (without.points, without.readout)
    assert with_preset.braiding == BraidingConfig(False, "by_looks")
    assert parse_braid_config(settings(preset="domain", points=[])).points == ()


def test_the_environment_names_presets_and_keys_of_them() -> None:
    environment = {"BRAID_PRESET": "domain", "BRAID_POINTS__1__STRATEGY": "router"}
    braid = parse_braid_config(settings(preset="training"), environment)
    assert [point.strategy for point in braid.points] == ["mlp", "router", "mlp"]
    assert braid.readout.kind == "gate"


@pytest.mark.parametrize("name", ["sizes", 3, ["size"]])
def test_an_unknown_preset_is_refused_with_the_list(name: object) -> None:
    with pytest.raises(ConfigError, match=r"preset: got .*, expected one of: 'domain', 'size' or 'training'"):
        parse_braid_config(settings(preset=name))
