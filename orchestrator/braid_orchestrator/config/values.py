"""The configuration of a braid as frozen values. How it is read and validated stands in `config_schema`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from braid_services.shard.config import ShardConfig

# What the parts of a braid beside its shards are called.
FUSION = "fusion"
ORCHESTRATOR = "orchestrator"


@dataclass(frozen=True, slots=True)
class PointConfig:
    """A fusion point. ``at`` is a relative depth in (0, 1) or a layer index of the anchor (other shards of
    another depth take the nearest relative depth), or a layer index per shard by name.

    ``receivers`` None: all shards, or those that the strategy serves at this point. ``fusion_width`` None: the
    smallest width among the shards, for residuals at most 256.
    """

    at: float | int | Mapping[str, int]
    name: str = ""
    strategy: str = "mlp"
    injection: Literal["residual", "replace"] = "residual"
    fusion_width: int | None = None
    receivers: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadoutConfig:
    """How next-token logits come about."""

    kind: Literal["anchor", "mixture", "gate"] = "anchor"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What the engine takes on. A request beyond ``max_waiting`` is refused with a retry time; a step packs at
    most ``max_batch_tokens`` rows, of which one prompt gets at most ``prefill_chunk``. A part that fails is
    waited for ``recovery_timeout_s`` before its requests are refused. One caller may send at most
    ``requests_per_minute`` (None: any number)."""

    max_running: int = 64
    max_waiting: int = 256
    max_batch_tokens: int = 512
    prefill_chunk: int = 256
    request_timeout_s: float = 600.0
    step_timeout_s: float = 60.0
    recovery_timeout_s: float = 20.0
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Where the fusion modules run (``embedded`` in the orchestrator, or as a ``service``) and their weights:
    a folder of versions (None: untrained) and the version to start with (None: the newest). ``imports`` are
    modules that register strategies of one's own. ``frames`` is the format of states on the wire to the service,
    see `braid_rpc.frames`; None: as they are. ``threads`` are torch's where the modules run, and in an orchestrator
    on plain processes (0: its own choice). ``max_publish_bytes`` bounds the weights of a version that is published
    (None: by what the plan's tensors need; 0: none is taken in)."""

    placement: Literal["embedded", "service"] = "service"
    weights: str | None = None
    version: str | None = None
    threads: int = 1
    imports: tuple[str, ...] = ()
    frames: str | None = None
    max_publish_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where the state is kept that outlives one orchestrator: in ``memory`` (nowhere else), or in a ``redis`` at
    ``url``. Whoever has not renewed its lease (every ``heartbeat_s``) for ``expiry_s`` is gone. ``when_lost``: new
    requests are refused while the store is away, or go on as if each orchestrator were alone."""

    store: Literal["memory", "redis"] = "memory"
    url: str | None = field(default=None, repr=False)
    password_file: str | None = None
    heartbeat_s: float = 1.0
    expiry_s: float = 5.0
    when_lost: Literal["refuse", "embedded"] = "refuse"


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may ask. ``api_keys_file`` holds one key per line; None, and no BRAID_API_KEYS in the environment:
    everybody."""

    api_keys_file: str | None = None


@dataclass(frozen=True, slots=True)
class BraidingConfig:
    """Whether requests are braided or answered by one shard alone. ``default`` is for those that don't say;
    "auto": ``decide`` decides, which is a registered predicate's name or, with a slash in it, a classifier's folder.
    ``margin`` instead of the classifier's own. ``imports`` are modules that register predicates."""

    default: bool | Literal["auto"] = True
    decide: str | None = None
    margin: float | None = None
    imports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BraidConfig:
    """The whole, as one file describes it. What ``preset`` brought stands under the other keys already."""

    name: str
    anchor: str
    shards: tuple[ShardConfig, ...]
    points: tuple[PointConfig, ...] = ()
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    braiding: BraidingConfig = field(default_factory=BraidingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    state: StateConfig = field(default_factory=StateConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    seed: int = 0
    preset: str | None = None
