"""The braiding guide's way to describe a braid, made into a configuration. Builds no fusion module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from braid_fusion.strategies import register_strategy
from braid_orchestrator.config.presets import PRESETS, Preset, depths_within
from braid_orchestrator.config.values import BraidConfig, BraidingConfig, PointConfig, ReadoutConfig
from braid_orchestrator.engine.requests import UseBraiding
from braid_orchestrator.inprocess.model_wrapper import ModelWrapper
from braid_rpc.errors import ConfigError

Strategy = str | type[nn.Module]

_MODEL_KEYS = ("model_name", "role", "quantization", "name", "device", "dtype")


def load_models(model_configs: Sequence[Mapping[str, Any] | ModelWrapper]) -> list[ModelWrapper]:
    """The models, those described by keys loaded, all under different names.

    Raises: ConfigError, and what `ModelWrapper` raises.
    """
    if not model_configs:
        raise ConfigError("model_configs: got none, expected at least one model")
    models: list[ModelWrapper] = []
    for index, config in enumerate(model_configs):
        taken = {model.name for model in models}
        if not isinstance(config, ModelWrapper):
            config = _load(index, config, taken)
        if config.name in taken:
            raise ConfigError(
                f"model_configs[{index}]: got a second {config.name!r}, expected different names"
            )
        models.append(config)
    return models


def _load(index: int, config: Mapping[str, Any], taken: set[str]) -> ModelWrapper:
    unknown = sorted(config.keys() - set(_MODEL_KEYS))
    if unknown or "model_name" not in config:
        raise ConfigError(
            f"model_configs[{index}]: got the keys {sorted(config)}, expected model_name and perhaps "
            f"{', '.join(_MODEL_KEYS[1:])}"
        )
    name = config.get("name") or config.get("role") or Path(str(config["model_name"])).name
    if name in taken and not config.get("name"):
        name = f"{name}-{index}"
    return ModelWrapper(**{**config, "name": name})


def braid_config(
    models: Sequence[ModelWrapper],
    strategy: Strategy | Sequence[Strategy] | None,
    layers: Sequence[int | float] | None,
    *,
    preset: str | None,
    anchor: str | int,
    readout: str | None,
    injection: str | None,
    fusion_width: int | None,
    options: Mapping[str, Any] | None,
    seed: int,
    use_braiding: UseBraiding,
    decide: str | None,
    decides: bool,
) -> BraidConfig:
    """See `BraidedLLM`; ``decides`` is whether anything does. Raises: ConfigError."""
    names = [model.name for model in models]
    if isinstance(anchor, int):
        if not 0 <= anchor < len(names):
            raise ConfigError(f"anchor: got {anchor}, expected a name or an index below {len(names)}")
        anchor = names[anchor]
    start = _start(preset)
    if strategy is None:
        strategy, options = start.strategy, start.options if options is None else options
    strategies = _per_layer(strategy, layers := _layers(models, anchor, layers))
    if use_braiding is None:
        use_braiding = "auto" if start.decides and decides else True
    return BraidConfig(
        name="braided",
        anchor=anchor,
        preset=preset,
        shards=tuple(model.backend.config for model in models),
        points=tuple(
            PointConfig(
                at=layer,
                strategy=strategy_name(one),
                injection=cast(Literal["residual", "replace"], injection or start.injection),
                fusion_width=fusion_width,
                options=dict(options or {}),
            )
            for layer, one in zip(layers, strategies, strict=True)
        ),
        readout=ReadoutConfig(cast(Literal["anchor", "mixture", "gate"], readout or start.readout)),
        braiding=BraidingConfig(use_braiding, decide),
        seed=seed,
    )


def _start(preset: str | None) -> Preset:
    if preset is None:
        return Preset("learned_weighted", "anchor", decides=False)
    if preset not in PRESETS:
        raise ConfigError(f"preset: got {preset!r}, expected one of: {', '.join(PRESETS)}")
    return PRESETS[preset]


def _layers(
    models: Sequence[ModelWrapper], anchor: str, layers: Sequence[int | float] | None
) -> Sequence[int | float]:
    if layers is not None:
        return layers
    depth = next((model.num_layers for model in models if model.name == anchor), 1)
    return depths_within(depth)


def _per_layer(strategy: Strategy | Sequence[Strategy], layers: Sequence[int | float]) -> Sequence[Strategy]:
    strategies = [strategy] * len(layers) if isinstance(strategy, str | type) else list(strategy)
    if len(strategies) != len(layers):
        raise ConfigError(
            f"fusion_strategy: got {len(strategies)} for {len(layers)} layers, expected one, or one per layer"
        )
    return strategies


def strategy_name(strategy: Strategy) -> str:
    """The name of a strategy; a class is registered under its own."""
    if isinstance(strategy, str):
        return strategy
    register_strategy(strategy.__name__)(strategy)
    return strategy.__name__
