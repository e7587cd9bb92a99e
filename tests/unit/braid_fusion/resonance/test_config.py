"""Configurations: presets, what is filled in for a model, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from braid_fusion import (
    CoherenceGateConfig,
    FusionConfig,
    KuramotoConfig,
    PrimeConfig,
    QuaternionConfig,
    ResonanceFusionLayer,
)
from braid_fusion.errors import GraftConfigError
from braid_fusion.resonance.config import COMPONENTS
from braid_fusion.resonance.defaults import spread


@pytest.mark.parametrize(
    ("preset", "num_layers", "budget"),
    [("minimal", 1, 100_000), ("standard", 4, 500_000), ("full", 6, 1_000_000)],
)
def test_the_presets_keep_to_their_budgets_at_width_768(preset: str, num_layers: int, budget: int) -> None:
    config = getattr(FusionConfig, preset)().resolve(768, 12)
    assert len(config.fusion_positions) == num_layers
    one = sum(parameter.numel() for parameter in ResonanceFusionLayer(768, config).parameters())
    assert budget // 2 < one * num_layers <= budget


def test_the_full_preset_has_all_components() -> None:
    assert set(FusionConfig.full().enabled_components) == set(COMPONENTS)
    assert FusionConfig.minimal().enabled_components == ("prime",)
    assert not FusionConfig.minimal().prime.use_quaternion


def test_the_grafting_documents_custom_configuration() -> None:
    config = FusionConfig(
        hidden_dim=1024,
        fusion_positions=[4, 8, 12, 15],
        fusion_mode="residual",
        fusion_alpha=0.15,
        learnable_alpha=True,
        prime=PrimeConfig(num_primes=32, use_quaternion=True, learnable_phases=True),
        kuramoto=KuramotoConfig(coupling=2.0, use_learned_frequencies=True),
        enabled_components=["prime", "quaternion", "kuramoto", "coherence_gate"],
    )
    resolved = config.resolve(1024, 16)
    assert resolved.fusion_positions == (4, 8, 12, 15)
    layer = ResonanceFusionLayer(1024, resolved)
    assert layer.core.stages["prime"].projection.num_primes == 32
    assert float(layer.alpha.detach()) == pytest.approx(0.15) and layer.alpha.requires_grad


def test_positions_are_spread_over_the_model() -> None:
    assert FusionConfig.for_gpt2().resolve(768, 12).fusion_positions == (3, 6, 9, 11)
    assert FusionConfig.standard().resolve(768, 12).fusion_positions == (3, 6, 9, 11)
    assert FusionConfig.for_llama(num_layers=32).fusion_positions == (8, 16, 24, 31)
    assert FusionConfig.minimal().resolve(768, 12).fusion_positions == (6,)
    for depth in range(1, 40):
        for count in range(1, 12):
            places = spread(count, depth)
            assert len(places) == len(set(places)) == min(count, depth)
            assert list(places) == sorted(places) and places[0] >= 0 and places[-1] < depth


def test_what_is_resolved_stays_as_it_is() -> None:
    for preset in (FusionConfig.minimal(), FusionConfig.full(), FusionConfig.for_llama(8)):
        once = preset.resolve(64, 8)
        assert once.resolve(64, 8) == once
        assert (once.hidden_dim, once.fusion_width, once.component_width) == (64, 128, 16)


@pytest.mark.parametrize(
    ("hidden_dim", "width", "component_width"),
    [(4, 8, 4), (8, 16, 4), (24, 48, 4), (64, 128, 16), (512, 84, 32), (768, 56, 32), (4096, 56, 32)],
)
def test_the_widths_fit_narrow_models(hidden_dim: int, width: int, component_width: int) -> None:
    config = FusionConfig().resolve(hidden_dim)
    assert (config.fusion_width, config.component_width) == (width, component_width)
    assert component_width % (4 * config.quaternion.num_heads) == 0
    assert FusionConfig(fusion_width=4).resolve(hidden_dim).component_width == 4


def test_plain_values_there_and_back() -> None:
    config = FusionConfig.full(fusion_positions=[2, 1], seed=3, kuramoto=KuramotoConfig(8, 2.0)).resolve(
        64, 5
    )
    plain = json.loads(json.dumps(config.to_dict()))
    assert FusionConfig.from_dict(plain) == config
    assert FusionConfig.from_dict({"prime": {"num_primes": 7}}).prime.num_primes == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"enabled_components": ["prime", "resonator"]},
            "enabled_components: got 'resonator', expected among prime",
        ),
        ({"enabled_components": "prime"}, "enabled_components: got 'prime', expected names in a list"),
        ({"enabled_components": []}, "enabled_components: got none"),
        ({"enabled_components": ["prime", "prime"]}, "enabled_components: got 'prime' more than once"),
        ({"enabled_components": ["quaternion", "prsc"]}, "got 'prsc' without 'prime', expected both"),
        ({"enabled_components": ["smf"]}, "got 'smf' without 'prime', expected both"),
        (
            {"fusion_mode": "series"},
            "fusion_mode: got 'series', expected one of parallel, sequential, residual",
        ),
        ({"fusion_positions": [3, 3]}, r"fusion_positions: got \[3, 3\], expected each index once"),
        ({"fusion_positions": [-1]}, "fusion_positions: got -1, expected a whole number from 0"),
        ({"fusion_positions": 3}, "fusion_positions: got 3, expected layer indices in a list"),
        ({"fusion_positions": []}, r"fusion_positions: got \[\], expected layer indices in a list"),
        ({"fusion_width": 0}, "fusion_width: got 0, expected a whole number from 1"),
        ({"component_width": 0}, "component_width: got 0, expected a whole number from 1"),
        ({"hidden_dim": "768"}, "hidden_dim: got '768'"),
        ({"num_fusion_layers": 0}, "num_fusion_layers: got 0"),
        ({"fusion_alpha": "half"}, "fusion_alpha: got 'half', expected a number"),
        ({"fusion_alpha": float("nan")}, "fusion_alpha: got nan, expected a number"),
        ({"learnable_alpha": 1}, "learnable_alpha: got 1, expected true or false"),
        ({"prime": {"num_primes": 3}}, "prime: got {'num_primes': 3}, expected a PrimeConfig"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(GraftConfigError, match=says):
        FusionConfig(**options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PrimeConfig(num_primes=1), "prime.num_primes: got 1, expected a whole number from 2"),
        (
            lambda: PrimeConfig(use_quaternion="yes"),
            "prime.use_quaternion: got 'yes', expected true or false",
        ),
        (lambda: KuramotoConfig(num_steps=0), "kuramoto.num_steps: got 0"),
        (lambda: KuramotoConfig(coupling=float("inf")), "kuramoto.coupling: got inf"),
        (lambda: QuaternionConfig(num_heads=0), "quaternion.num_heads: got 0"),
        (lambda: CoherenceGateConfig(threshold=1.0), "coherence_gate.threshold: got 1.0"),
    ],
)
def test_what_is_wrong_in_a_part_is_named(make: Any, says: str) -> None:
    with pytest.raises(GraftConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (FusionConfig(hidden_dim=32), "hidden_dim: got 32, expected the model's width 64"),
        (FusionConfig(fusion_positions=(1, 5, 9)), "fusion_positions: got 5, 9, expected .* 0 to 4"),
        (FusionConfig.for_gpt2(), "fusion_positions: got 6, 9, 11, expected .* 0 to 4"),
        (FusionConfig(component_width=30), "component_width: got 30, expected a multiple of 4"),
        (
            FusionConfig(fusion_width=8, component_width=12),
            "component_width: got 12, expected at most the fusion width 8",
        ),
        (
            FusionConfig(component_width=48, quaternion=QuaternionConfig(num_heads=5)),
            "quaternion.num_heads: got 5, expected a divisor of the 12 quaternions",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_named(config: FusionConfig, says: str) -> None:
    with pytest.raises(GraftConfigError, match=says):
        config.resolve(64, 5)


def test_widths_are_free_where_no_quaternions_live_in_them() -> None:
    config = FusionConfig(fusion_width=30, component_width=15, enabled_components=("prime",))
    assert config.resolve(64, 5).component_width == 15
    assert replace(config, fusion_width=None).resolve(64, 5).fusion_width == 128
    assert FusionConfig(fusion_width=30).resolve(64, 5).fusion_width == 30


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({"fusion_layers": [1]}, "fusion_layers: got a key that is not known, expected among hidden_dim"),
        ({"prime": {"primes": 3}}, "prime.primes: got a key that is not known, expected among num_primes"),
        ({"prsc": {"blend": 3}}, "prsc.blend: got a key that is not known, expected among none"),
        ({"kuramoto": 3}, "kuramoto: got 3, expected a KuramotoConfig"),
        ([1], r"configuration: got \[1\], expected values by name"),
    ],
)
def test_unknown_keys_are_named(plain: Any, says: str) -> None:
    with pytest.raises(GraftConfigError, match=says):
        FusionConfig.from_dict(plain)


def test_what_is_left_without_a_component_can_always_be_built() -> None:
    full = FusionConfig.full()
    for name in full.enabled_components:
        left = full.without(name).enabled_components
        gone = {"prime": {"prime", "prsc", "smf"}}.get(name, {name})
        assert set(left) == set(full.enabled_components) - gone
        FusionConfig.full().without(name).resolve(64, 5)
    with pytest.raises(GraftConfigError, match="got none"):
        FusionConfig.minimal().without("prime")
