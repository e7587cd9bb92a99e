"""From a configuration to a running braid: resolves the plan and connects shards, fusion modules and engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_fusion.strategies import place_points
from braid_orchestrator.config.presets import DEPTHS, depths_within
from braid_orchestrator.config.values import BraidConfig, PointConfig
from braid_orchestrator.deciding import Deciding, make_decider, model_hashes
from braid_orchestrator.engine.engine import Engine
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.local import LocalFusion, LocalShard
from braid_orchestrator.engine.ports import Fusion, Shard
from braid_orchestrator.engine.remote_fusion import RemoteFusion
from braid_orchestrator.engine.remote_shard import RemoteShard
from braid_orchestrator.engine.replicas import ReplicatedShard
from braid_orchestrator.serving.rate_limit import RateLimiter
from braid_orchestrator.serving.service import BraidService
from braid_orchestrator.serving.shard_text import ShardText
from braid_orchestrator.state.link import StateLink
from braid_orchestrator.state.memory import MemoryStore
from braid_orchestrator.state.store import StateStore
from braid_rpc.cards import ShardCard
from braid_rpc.errors import ConfigError
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.main import import_strategies
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

Resolver = Callable[[], str]

# Beyond it, reading the fusion modules' weights costs more of a decode step than it gains.
_RESIDUAL_WIDTH = 256


def assemble_local(config: BraidConfig, backends: Sequence[ShardBackend] | None = None) -> BraidService:
    """Everything in this process. ``backends`` are used instead of loading the configured models, if given.

    Raises: ConfigError, UnknownModelError, UnsupportedModelError, WeightMismatchError, CorruptWeightsError.
    """
    if backends is None:
        backends = [ShardBackend.load(shard) for shard in config.shards]
    return _assemble(config, [LocalShard(backend) for backend in backends], _embedded_fusion(config))


@dataclass(frozen=True, slots=True)
class Replicas:
    """A shard that may have several replicas: ``find`` gives the targets of those that there are now, and is asked
    again every ``poll_s``."""

    find: Callable[[], Collection[str]]
    poll_s: float


def assemble_remote(
    config: BraidConfig,
    shard_targets: Mapping[str, Resolver | Replicas],
    fusion_target: Resolver | None,
    store: StateStore | None = None,
) -> BraidService:
    """Shards are services, and the fusion modules too where ``fusion_target`` is given.

    The resolvers say where a part is to be found (``unix:/path`` or ``host:port``); they are asked again
    whenever a part has to be reconnected. ``store`` is one that other orchestrators of the braid share; it stays
    the caller's. Raises: as `assemble_local`, and UnavailableError.
    """
    shards: list[Shard] = []
    try:
        for shard in config.shards:
            shards.append(_remote_shard(shard, shard_targets[shard.name], config.limits.step_timeout_s))
        fusion = (
            _embedded_fusion(config)
            if fusion_target is None
            else RemoteFusion(fusion_target, config.limits.step_timeout_s, config.fusion.frames)
        )
    except BaseException:
        for connected in shards:
            connected.shutdown()
        raise
    return _assemble(config, shards, fusion, store)


def _remote_shard(config: ShardConfig, source: Resolver | Replicas, step_timeout_s: float) -> Shard:
    def connect(resolve: Resolver) -> Shard:
        return RemoteShard(config.name, resolve, step_timeout_s, config.max_message_bytes, config.frames)

    if isinstance(source, Replicas):
        return ReplicatedShard(
            config.name, source.find, lambda target: connect(lambda: target), source.poll_s
        )
    return connect(source)


def _embedded_fusion(config: BraidConfig) -> Fusion:
    import_strategies(config.fusion.imports)
    return LocalFusion(
        FusionBackend(config.fusion.weights, config.fusion.version, config.fusion.max_publish_bytes)
    )


def _assemble(
    config: BraidConfig, shards: Sequence[Shard], fusion: Fusion, store: StateStore | None = None
) -> BraidService:
    try:
        plan = resolve_plan(config, [shard.card for shard in shards])
        fusion.prepare(plan)
        decider = make_decider(config.braiding, model_hashes([shard.card for shard in shards]))
        lanes = Lanes(plan, [shard.card for shard in shards], lambda shard: shards[shard].tokenizer_json())
        max_message_bytes = min(shard.max_message_bytes for shard in config.shards)
        texts = [
            ShardText(shard.card, lanes.codec(index), shard.chat_format())
            for index, shard in enumerate(shards)
        ]
        engine = Engine(config.name, shards, fusion, plan, lanes, config.limits, max_message_bytes)
    except BaseException:
        for shard in shards:
            shard.shutdown()
        fusion.shutdown()
        raise
    engine.start()
    link = None if store is None else StateLink(store, config.state, engine)
    if link is not None:
        link.start()
    deciding = Deciding(plan, lanes.anchor.decode, config.braiding.default, decider)
    per_minute = config.limits.requests_per_minute
    limiter = None if per_minute is None else RateLimiter(store or MemoryStore(), per_minute)
    return BraidService(engine, texts, link, limiter, deciding)


def resolve_plan(config: BraidConfig, cards: Sequence[ShardCard]) -> BraidPlan:
    """The plan of a configuration over shards of these cards, given in the configuration's order.

    Raises: ConfigError, naming the key, what it got and what was expected.
    """
    names = [card.name for card in cards]
    if config.anchor not in names:
        raise ConfigError(f"anchor: got {config.anchor!r}, expected one of {', '.join(names)}")
    anchor = names.index(config.anchor)
    points = sorted(
        (_resolve_point(index, point, cards, anchor) for index, point in _given(config, cards[anchor])),
        key=lambda point: point.layers[anchor],
    )
    _check_order(points, names)
    return BraidPlan(
        shards=tuple(
            PlanShard(
                card.name, card.width, card.num_layers, card.vocab_size, card.model_hash, card.tokenizer_hash
            )
            for card in cards
        ),
        anchor=anchor,
        points=place_points(points, len(cards), anchor),
        readout=PlanReadout(config.readout.kind, dict(config.readout.options)),
        seed=config.seed,
    )


def _given(config: BraidConfig, anchor: ShardCard) -> list[tuple[int, PointConfig]]:
    """The points with their numbers. What a preset put at several depths of one layer, where the anchor has too few
    of them, stands there once."""
    points = list(enumerate(config.points))
    alike = all(replace(point, at=config.points[0].at) == config.points[0] for point in config.points)
    if config.preset is None or not alike or [point.at for point in config.points] != list(DEPTHS):
        return points
    return [(index, point) for index, point in points if point.at in depths_within(anchor.num_layers)]


def _resolve_point(index: int, point: PointConfig, cards: Sequence[ShardCard], anchor: int) -> PlanPoint:
    layers = tuple(_layer(f"points.{index}.at", point, card, cards[anchor]) for card in cards)
    names = [card.name for card in cards]
    for name in point.receivers or ():
        if name not in names:
            raise ConfigError(
                f"points.{index}.receivers: got {name!r}, expected names out of {', '.join(names)}"
            )
    return PlanPoint(
        name=point.name or str(layers[anchor]),
        layers=layers,
        strategy=point.strategy,
        fusion_width=point.fusion_width or _default_width(point, cards),
        injection=point.injection,
        receivers=tuple(names.index(name) for name in point.receivers or ()),
        options=dict(point.options),
    )


def _default_width(point: PointConfig, cards: Sequence[ShardCard]) -> int:
    """A residual needs to say only what changes; what takes a state's place has to say it all."""
    smallest = min(card.width for card in cards)
    return smallest if point.injection == "replace" else min(smallest, _RESIDUAL_WIDTH)


def _layer(key: str, point: PointConfig, card: ShardCard, anchor: ShardCard) -> int:
    """The layer of one shard whose input is exchanged."""
    at = point.at
    if isinstance(at, Mapping):
        if card.name not in at:
            raise ConfigError(f"{key}: got no layer for shard {card.name!r}, expected one for every shard")
        return _checked_layer(key, at[card.name], card)
    if isinstance(at, int):
        layer = _checked_layer(key, at, anchor)
        if card.num_layers == anchor.num_layers:
            return layer
        return min(round(layer / anchor.num_layers * card.num_layers), card.num_layers - 1)
    if not 0.0 < at < 1.0:
        raise ConfigError(f"{key}: got {at}, expected a relative depth in (0, 1) or a layer index")
    return min(max(round(at * card.num_layers), 1), card.num_layers - 1)


def _checked_layer(key: str, layer: int, card: ShardCard) -> int:
    if not 0 <= layer < card.num_layers:
        raise ConfigError(
            f"{key}: got layer {layer} for shard {card.name!r}, expected between 0 and {card.num_layers - 1}"
        )
    return layer


def _check_order(points: Sequence[PlanPoint], names: Sequence[str]) -> None:
    seen: set[str] = set()
    for point in points:
        if point.name in seen:
            raise ConfigError(f"points: got two of name {point.name!r}, expected different names or depths")
        seen.add(point.name)
    for before, after in pairwise(points):
        for shard, name in enumerate(names):
            if before.layers[shard] > after.layers[shard]:
                raise ConfigError(
                    f"points: {before.name!r} comes before {after.name!r} in the anchor but behind it in shard "
                    f"{name!r} (layers {before.layers[shard]} and {after.layers[shard]}); expected one order"
                )
