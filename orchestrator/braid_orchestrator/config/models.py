"""What a braid's configuration may say: one pydantic model per section, frozen into `config`.

Knows neither files nor the environment; `schema` reads those. What single values may be stands in `kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from braid_orchestrator.config.kinds import (
    Braided,
    Count,
    Device,
    Frames,
    Name,
    Quantization,
    Seconds,
    Size,
    SizeOrNothing,
)
from braid_orchestrator.config.values import (
    FUSION,
    ORCHESTRATOR,
    AuthConfig,
    BraidConfig,
    BraidingConfig,
    FusionConfig,
    LimitsConfig,
    PointConfig,
    ReadoutConfig,
    StateConfig,
)
from braid_rpc.errors import ConfigError
from braid_services.shard.config import ShardConfig


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ShardModel(_Model):
    """One base model and how it is served."""

    name: Name
    model: Annotated[StrictStr, Field(min_length=1, description="a local folder or a hub name")]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: Device = "cpu"
    threads: Annotated[StrictInt, Field(ge=0)] = 1
    cache_bytes: Size = 512 * 2**20
    block_tokens: Count = 64
    session_ttl_s: Seconds = 600.0
    max_message_bytes: Size = 64 * 2**20
    role: str = ""
    quantization: Quantization = None
    frames: Frames = None
    training_share: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] = 0.5
    training_turn_rows: Count = 512
    training_bytes: SizeOrNothing = 256 * 2**20
    training_ttl_s: Seconds = 120.0


class PointModel(_Model):
    """One fusion point: a relative depth, a layer of the anchor, or a layer per shard."""

    at: StrictFloat | StrictInt | dict[str, StrictInt]
    name: str = ""
    strategy: Annotated[StrictStr, Field(min_length=1)] = "mlp"
    injection: Literal["residual", "replace"] = "residual"
    fusion_width: Count | None = None
    receivers: list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("at", mode="before")
    @classmethod
    def _depth(cls, value: object) -> object:
        if isinstance(value, Mapping) and not all(isinstance(shard, str) for shard in value):
            raise PydanticCustomError("depth", "layers by the names of shards")
        layers = value.values() if isinstance(value, Mapping) else [value]
        for depth in layers:
            if isinstance(depth, bool) or not isinstance(depth, int | float):
                raise PydanticCustomError(
                    "depth", "a relative depth in (0, 1), a layer index, or one per shard"
                )
            if isinstance(depth, float) and (isinstance(value, Mapping) or not 0.0 < depth < 1.0):
                raise PydanticCustomError(
                    "depth",
                    "a whole layer index per shard"
                    if isinstance(value, Mapping)
                    else "a relative depth in (0, 1), or a whole layer index",
                )
            if isinstance(depth, int) and depth < 0:
                raise PydanticCustomError(
                    "depth", "a layer index of at least 0, or a relative depth in (0, 1)"
                )
        return value


class ReadoutModel(_Model):
    """How next-token logits come about. A bare string is the kind."""

    kind: Literal["anchor", "mixture", "gate"] = "anchor"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _bare_kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class FusionModel(_Model):
    """Where the fusion modules run, and which weights they start with."""

    placement: Literal["embedded", "service"] = "service"
    weights: StrictStr | None = None
    version: StrictStr | None = None
    threads: Annotated[StrictInt, Field(ge=0)] = 1
    imports: tuple[StrictStr, ...] = ()
    frames: Frames = None
    max_publish_bytes: SizeOrNothing | None = None


class BraidingModel(_Model):
    """Whether requests are braided, or one shard answers alone."""

    default: Braided = True
    decide: Annotated[StrictStr, Field(min_length=1)] | None = None
    margin: Annotated[float, Field(ge=0, le=1)] | None = None
    imports: tuple[StrictStr, ...] = ()

    def check(self) -> None:
        """Check what one key says about another. Raises: ConfigError."""
        if self.default == "auto" and self.decide is None:
            raise ConfigError(
                "braiding.default: got 'auto' without braiding.decide, expected a predicate's name or a "
                "classifier's folder there"
            )
        if self.margin is not None and "/" not in (self.decide or ""):
            raise ConfigError(
                f"braiding.margin: got {self.margin:g}, expected a classifier's folder in braiding.decide with it "
                "(a path with a slash)"
            )


class LimitsModel(_Model):
    """What the engine takes on at a time."""

    max_running: Count = 64
    max_waiting: Annotated[StrictInt, Field(ge=0)] = 256
    max_batch_tokens: Count = 512
    prefill_chunk: Count = 256
    request_timeout_s: Seconds = 600.0
    step_timeout_s: Seconds = 60.0
    recovery_timeout_s: Seconds = 20.0
    requests_per_minute: Count | None = None


class StateModel(_Model):
    """Where the state is kept that outlives one orchestrator."""

    store: Literal["memory", "redis"] = "memory"
    url: StrictStr | None = None
    password_file: StrictStr | None = None
    heartbeat_s: Seconds = 1.0
    expiry_s: Seconds = 5.0
    when_lost: Literal["refuse", "embedded"] = "refuse"

    def check(self) -> None:
        """Check what one key says about another. Raises: ConfigError."""
        if self.store == "redis" and self.url is None:
            raise ConfigError(
                "state.url: missing, expected redis://host:port or unix:///path for a redis store"
            )
        if self.store == "memory" and self.url is not None:
            raise ConfigError("state.url: got one for a store in memory, expected state.store: redis")
        if self.expiry_s < 2 * self.heartbeat_s:
            raise ConfigError(
                f"state.expiry_s: got {self.expiry_s:g}, expected at least twice state.heartbeat_s "
                f"({self.heartbeat_s:g}), or one late heartbeat would count as a death"
            )


class AuthModel(_Model):
    """Who may ask."""

    api_keys_file: StrictStr | None = None


class BraidModel(_Model):
    """The whole file, or the ``args`` of a Ray Serve application."""

    name: Name = "braid"
    anchor: StrictStr
    preset: Literal["domain", "size", "training"] | None = None
    shards: Annotated[list[ShardModel], Field(min_length=1)]
    points: list[PointModel] = Field(default_factory=list)
    readout: ReadoutModel = Field(default_factory=ReadoutModel)
    fusion: FusionModel = Field(default_factory=FusionModel)
    braiding: BraidingModel = Field(default_factory=BraidingModel)
    limits: LimitsModel = Field(default_factory=LimitsModel)
    state: StateModel = Field(default_factory=StateModel)
    auth: AuthModel = Field(default_factory=AuthModel)
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0

    def check_references(self) -> None:
        """Check what one key says about another. Raises: ConfigError."""
        names = [shard.name for shard in self.shards]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ConfigError(f"shards[{i}].name: got {name!r} a second time, expected a name of its own")
            if name in (FUSION, ORCHESTRATOR):
                raise ConfigError(
                    f"shards.{name}: got a name that another part of a braid has, expected any other"
                )
        known = ", ".join(names)
        if self.anchor not in names:
            raise ConfigError(f"anchor: got {self.anchor!r}, expected one of the shards: {known}")
        if self.name in names:
            raise ConfigError(f"name: got {self.name!r}, which is also a shard's, expected a name of its own")
        point_names = [point.name for point in self.points]
        for i, point in enumerate(self.points):
            key = f"points[{i}]"
            if point.name and point.name in point_names[:i]:
                raise ConfigError(f"{key}.name: got {point.name!r} a second time, expected a name of its own")
            if isinstance(point.at, dict) and sorted(point.at) != sorted(names):
                raise ConfigError(
                    f"{key}.at: got layers for {', '.join(point.at)}, expected for each of: {known}"
                )
            for receiver in point.receivers or ():
                if receiver not in names:
                    raise ConfigError(f"{key}.receivers: got {receiver!r}, expected shards among: {known}")
        self.braiding.check()
        self.state.check()
        limits = self.limits
        if limits.max_batch_tokens <= limits.max_running:
            raise ConfigError(
                f"limits.max_batch_tokens: got {limits.max_batch_tokens}, expected more than limits.max_running "
                f"({limits.max_running}), or new prompts would wait until others have ended"
            )
        if limits.prefill_chunk > limits.max_batch_tokens:
            raise ConfigError(
                f"limits.prefill_chunk: got {limits.prefill_chunk}, expected at most limits.max_batch_tokens "
                f"({limits.max_batch_tokens})"
            )

    def freeze(self) -> BraidConfig:
        """The same as frozen values."""
        return BraidConfig(
            name=self.name,
            anchor=self.anchor,
            preset=self.preset,
            shards=tuple(ShardConfig(**shard.model_dump()) for shard in self.shards),
            points=tuple(
                PointConfig(
                    **{
                        **point.model_dump(),
                        "receivers": None if point.receivers is None else tuple(point.receivers),
                    }
                )
                for point in self.points
            ),
            readout=ReadoutConfig(**self.readout.model_dump()),
            fusion=FusionConfig(**self.fusion.model_dump()),
            braiding=BraidingConfig(**self.braiding.model_dump()),
            limits=LimitsConfig(**self.limits.model_dump()),
            state=StateConfig(**self.state.model_dump()),
            auth=AuthConfig(**self.auth.model_dump()),
            seed=self.seed,
        )


SECTIONS: dict[str, type[BaseModel]] = {
    "shards": ShardModel,
    "points": PointModel,
    "readout": ReadoutModel,
    "fusion": FusionModel,
    "braiding": BraidingModel,
    "limits": LimitsModel,
    "state": StateModel,
    "auth": AuthModel,
}
