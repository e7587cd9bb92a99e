"""The guide's patterns by name: what each makes of models, and that what is given counts instead."""

from __future__ import annotations

import pytest
from models import tiny_backend

from braid_orchestrator import BraidedLLM, ModelWrapper
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.presets import PRESETS
from braid_orchestrator.config.schema import parse_braid_config
from braid_rpc.errors import ConfigError


@pytest.fixture(scope="module")
def wrappers() -> list[ModelWrapper]:
    return [
        ModelWrapper.from_backend(tiny_backend("large", 1, width=48, num_layers=5)),
        ModelWrapper.from_backend(tiny_backend("small", 2, width=32, num_layers=4)),
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_answers(wrappers: list[ModelWrapper], name: str) -> None:
    with BraidedLLM(wrappers, preset=name) as braided:
        assert braided.config.preset == name
        assert [point.strategy for point in braided.plan.points] == [PRESETS[name].strategy] * 3
        assert braided.plan.readout.kind == PRESETS[name].readout
        found = braided.complete("any text", 6, ignore_eos=True)
        assert len(found.tokens) == 6 and found.braided
        alone = braided.complete("any text", 6, use_braiding=False, ignore_eos=True)
        # Untrained, the large model of a braid of sizes is not disturbed.
        assert name != "size" or found.text == alone.text


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("depth", "layers"), [(2, [(1, 3)]), (3, [(1, 2), (2, 4)]), (7, [(2, 2), (4, 3), (5, 4)])]
)
def test_a_file_and_a_notebook_make_the_same_points_of_a_preset(
    name: str, depth: int, layers: list[tuple[int, int]]
) -> None:
    """Weights trained in one fit the other. An anchor of few layers has fewer points, not two at one layer."""
    models = [
        ModelWrapper.from_backend(tiny_backend("large", 1, width=32, num_layers=depth)),
        ModelWrapper.from_backend(tiny_backend("small", 2, width=32, num_layers=6)),
    ]
    shards = [{"name": model.name, "model": "."} for model in models]
    config = parse_braid_config({"anchor": "large", "preset": name, "shards": shards})
    plan = resolve_plan(config, [model.backend.card for model in models])
    assert [point.layers for point in plan.points] == layers
    assert plan.points == BraidedLLM(models, preset=name).plan.points


def test_sizes_send_what_the_small_one_knows_to_the_large_one(wrappers: list[ModelWrapper]) -> None:
    plan = BraidedLLM(wrappers, preset="size").plan
    assert [point.receivers for point in plan.points] == [(0,)] * 3
    assert [point.options["direction"] for point in plan.points] == ["in"] * 3


def test_what_is_given_counts_instead(wrappers: list[ModelWrapper]) -> None:
    braided = BraidedLLM(wrappers, "mlp", [2], preset="size", readout="mixture", injection="replace")
    (point,) = braided.plan.points
    assert (point.strategy, point.injection, point.options) == ("mlp", "replace", {})
    assert braided.plan.readout.kind == "mixture"
    with BraidedLLM(wrappers, preset="size", decide=lambda text: "small") as braided:
        assert braided.complete("any", 2).answered_by == "small"
        assert braided.complete("any", 2, use_braiding=True).braided
    with BraidedLLM(wrappers, preset="size", decide=lambda text: "small", use_braiding=True) as braided:
        assert braided.complete("any", 2).braided
    with BraidedLLM(wrappers, preset="training", decide=lambda text: "small") as braided:
        assert braided.complete("any", 2).braided


def test_an_unknown_preset_is_refused_with_the_list(wrappers: list[ModelWrapper]) -> None:
    with pytest.raises(ConfigError, match="preset: got 'sizes', expected one of: domain, size, training"):
        BraidedLLM(wrappers, preset="sizes")
