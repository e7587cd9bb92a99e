"""Strategies by name, a user's own included, and how one is built. Knows no particular strategy."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Generator, nn

from braid_fusion.errors import PlanError
from braid_fusion.plan import PlanPoint
from braid_fusion.strategies.base import FusionStrategy

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_STRATEGIES: dict[str, type[nn.Module]] = {}


def register_strategy(*names: str) -> Callable[[type[ModuleT]], type[ModuleT]]:
    """A class decorator: plans may name the class from now on. A name of ours cannot be taken over."""

    def register(cls: type[ModuleT]) -> type[ModuleT]:
        for name in names:
            held = _STRATEGIES.get(name)
            if held is not None and held.__module__.startswith("braid_fusion.") and held is not cls:
                raise PlanError(
                    f"strategy {name!r} is built in as {held.__name__}; register {cls.__name__} otherwise"
                )
            _STRATEGIES[name] = cls
        return cls

    return register


def strategy_names() -> tuple[str, ...]:
    """All names that a plan may use."""
    return tuple(sorted(_STRATEGIES))


def place_points(points: Sequence[PlanPoint], num_shards: int, anchor: int) -> tuple[PlanPoint, ...]:
    """Points in the order of depth, each as its strategy states it at that place (`FusionStrategy.in_plan`).

    Points without receivers get all shards, unless their strategy says otherwise. A name that is registered
    elsewhere only, as in a service, is left as it is.
    """
    placed: list[PlanPoint] = []
    seen: Counter[type[nn.Module]] = Counter()
    for point in reversed(points):
        cls = _STRATEGIES.get(point.strategy)
        if cls is not None and issubclass(cls, FusionStrategy):
            point = cls.in_plan(point, seen[cls], num_shards, anchor)
            seen[cls] += 1
        placed.append(replace(point, receivers=point.receivers or tuple(range(num_shards))))
    return tuple(reversed(placed))


def make_strategy(
    name: str,
    num_shards: int,
    fusion_width: int,
    options: Mapping[str, Any] | None = None,
    *,
    receivers: Sequence[int] | None = None,
    anchor: int = 0,
    generator: Generator | None = None,
) -> nn.Module:
    """Build the strategy of that name.

    The class gets those of ``num_models``, ``hidden_dim``, ``receivers`` (indices of the shards that
    receive), ``anchor`` and ``generator`` that its constructor names; if it names neither of the first two,
    they are given by position. Whatever a class draws from torch's global generator is drawn from
    a fork of it, seeded by ``generator``.

    Raises: PlanError for an unknown name or an option that the class does not take.
    """
    cls = _STRATEGIES.get(name)
    if cls is None:
        raise PlanError(f"strategy: got {name!r}, expected one of {', '.join(strategy_names())}")
    given = {
        "num_models": num_shards,
        "hidden_dim": fusion_width,
        "receivers": tuple(range(num_shards) if receivers is None else receivers),
        "anchor": anchor,
        "generator": generator,
    }
    options = dict(options or {})
    named = inspect.signature(cls).parameters
    allowed = [
        key for key in named if key not in given and named[key].kind is not inspect.Parameter.VAR_KEYWORD
    ]
    taken = {key: value for key, value in given.items() if key in named}
    positional = () if {"num_models", "hidden_dim"} & taken.keys() else (num_shards, fusion_width)
    try:
        inspect.signature(cls).bind(*positional, **taken, **options)
    except TypeError as error:
        raise PlanError(
            f"strategy {name!r}: got options {options}, expected among {allowed[len(positional) :]} ({error})"
        ) from error
    seed = None
    if "generator" not in named and generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            return cls(*positional, **taken, **options)
        except TypeError as error:
            raise PlanError(
                f"strategy {name!r}: {cls.__name__} can't be built from a number of models and a width: {error}"
            ) from error
