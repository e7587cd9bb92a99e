"""What a resonance layer is made of, validated. Plain frozen values; knows no torch and no model.

The names are those of the grafting document ("LLM Fusion: Resonance-Aware Layer Grafting", its "Configuration
Presets" and "Custom Fusion Configuration"). A configuration may leave open what depends on the model;
`FusionConfig.resolve` fills it in.

Letters: D model width, F fusion width, C component width, P primes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from braid_fusion.errors import GraftConfigError
from braid_fusion.resonance.checks import LARGEST, MOST_COUPLING, check_flags, check_number, check_whole
from braid_fusion.resonance.defaults import check_heads, default_component_width, default_width, spread

COMPONENTS = ("prime", "quaternion", "kuramoto", "coherence_gate", "prsc", "smf")
"""All components. In whatever order a configuration names them, they run in the order of `ResonanceCore`."""

DEFAULT_COMPONENTS = ("prime", "quaternion", "kuramoto", "coherence_gate")

FUSION_MODES = ("parallel", "sequential", "residual")

_NEEDS = {"prsc": "prime", "smf": "prime"}
_MAX_PRIMES, _MAX_STEPS, _MAX_LAYERS = 4096, 1024, 2**12


@dataclass(frozen=True)
class PrimeConfig:
    """Amplitudes over the first ``num_primes`` primes, of four parts each or of two."""

    num_primes: int = 25
    use_quaternion: bool = True
    learnable_phases: bool = True

    def __post_init__(self) -> None:
        check_whole("prime.num_primes", self.num_primes, 2, _MAX_PRIMES)
        check_flags(self, "prime", "use_quaternion", "learnable_phases")


@dataclass(frozen=True)
class QuaternionConfig:
    """Attention with rotated quaternions. ``num_heads`` None: the most of 8, 4, 2, 1 that fit the component width."""

    num_heads: int | None = None
    golden_ratio_heads: bool = True

    def __post_init__(self) -> None:
        if self.num_heads is not None:
            check_whole("quaternion.num_heads", self.num_heads, 1, LARGEST)
        check_flags(self, "quaternion", "golden_ratio_heads")


@dataclass(frozen=True)
class KuramotoConfig:
    """``num_oscillators`` per shard and position, coupled all to all within the position for ``num_steps`` steps."""

    num_oscillators: int = 16
    coupling: float = 1.5
    num_steps: int = 5
    use_learned_frequencies: bool = True

    def __post_init__(self) -> None:
        check_whole("kuramoto.num_oscillators", self.num_oscillators, 2, LARGEST)
        check_number("kuramoto.coupling", self.coupling, -MOST_COUPLING, MOST_COUPLING)
        check_whole("kuramoto.num_steps", self.num_steps, 1, _MAX_STEPS)
        check_flags(self, "kuramoto", "use_learned_frequencies")


@dataclass(frozen=True)
class CoherenceGateConfig:
    """``threshold``: the share of random states that the gate holds back, more than half, at the start."""

    threshold: float = 0.7
    soft_gate: bool = True

    def __post_init__(self) -> None:
        check_number("coherence_gate.threshold", self.threshold, 0.01, 0.99)
        check_flags(self, "coherence_gate", "soft_gate")


@dataclass(frozen=True)
class PRSCConfig:
    """Composition of neighbouring positions; it has no options of its own yet."""


@dataclass(frozen=True)
class SMFConfig:
    """A memory of 16-dimensional keys; it has no options of its own yet."""


_PARTS: dict[str, type] = {
    "prime": PrimeConfig,
    "quaternion": QuaternionConfig,
    "kuramoto": KuramotoConfig,
    "coherence_gate": CoherenceGateConfig,
    "prsc": PRSCConfig,
    "smf": SMFConfig,
}


@dataclass(frozen=True)
class FusionConfig:
    """Which layers of a model get a resonance layer, and what that is made of.

    Args:
        hidden_dim: D; None: the model's.
        fusion_positions: indices of the decoder layers whose output is changed; None: ``num_fusion_layers`` of them,
            spread over the model (all of them, where it has fewer).
        fusion_width: F; None: 56, more for a model narrower than 768, up to twice its width.
        component_width: C, how much of the fusion width the components work on, the rest passes beside them; None: a
            quarter of the model's width in whole quaternions, 4 to 32.
        fusion_mode: ``parallel``: each component sees the layer's input and their outputs are summed; ``sequential``:
            each sees what the one before made of it; ``residual``: each adds to a running stream.
        fusion_alpha: the update's scale, at 3 what a gate that begins at a third takes away; ``learnable_alpha``:
            whether training may change it.
        enabled_components: a subset of `COMPONENTS`.
        seed: of the starting values.

    Lists may stand where tuples are meant.
    Raises: GraftConfigError, naming the key, what it got and what it expected.
    """

    hidden_dim: int | None = None
    num_fusion_layers: int = 4
    fusion_positions: Sequence[int] | None = None
    fusion_width: int | None = None
    component_width: int | None = None
    fusion_mode: str = "residual"
    fusion_alpha: float = 3.0
    learnable_alpha: bool = True
    enabled_components: Sequence[str] = DEFAULT_COMPONENTS
    prime: PrimeConfig = field(default_factory=PrimeConfig)
    quaternion: QuaternionConfig = field(default_factory=QuaternionConfig)
    kuramoto: KuramotoConfig = field(default_factory=KuramotoConfig)
    coherence_gate: CoherenceGateConfig = field(default_factory=CoherenceGateConfig)
    prsc: PRSCConfig = field(default_factory=PRSCConfig)
    smf: SMFConfig = field(default_factory=SMFConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("hidden_dim", "fusion_width", "component_width"):
            if getattr(self, key) is not None:
                check_whole(key, getattr(self, key), 1, LARGEST)
        check_whole("num_fusion_layers", self.num_fusion_layers, 1, _MAX_LAYERS)
        check_whole("seed", self.seed, -(2**63), 2**63 - 1)
        check_number("fusion_alpha", self.fusion_alpha, -1000.0, 1000.0)
        check_flags(self, "", "learnable_alpha")
        if self.fusion_mode not in FUSION_MODES:
            raise GraftConfigError(
                f"fusion_mode: got {self.fusion_mode!r}, expected one of {', '.join(FUSION_MODES)}"
            )
        for key, kind in _PARTS.items():
            if not isinstance(getattr(self, key), kind):
                raise GraftConfigError(f"{key}: got {getattr(self, key)!r}, expected a {kind.__name__}")
        object.__setattr__(self, "enabled_components", _checked_components(self.enabled_components))
        if self.fusion_positions is not None:
            object.__setattr__(self, "fusion_positions", _checked_positions(self.fusion_positions))

    @classmethod
    def minimal(cls, **changes: Any) -> FusionConfig:
        """One layer with a prime projection of two parts: at most 100K parameters at width 768."""
        return replace(
            cls(
                num_fusion_layers=1,
                enabled_components=("prime",),
                prime=PrimeConfig(use_quaternion=False),
            ),
            **changes,
        )

    @classmethod
    def standard(cls, **changes: Any) -> FusionConfig:
        """Four layers of projection, attention, oscillators and gate: at most 500K parameters at width 768."""
        return replace(cls(), **changes)

    @classmethod
    def full(cls, **changes: Any) -> FusionConfig:
        """Six layers of all components: at most 1M parameters at width 768."""
        return replace(cls(num_fusion_layers=6, enabled_components=COMPONENTS), **changes)

    @classmethod
    def for_gpt2(cls, **changes: Any) -> FusionConfig:
        """The standard layers behind layers 3, 6, 9 and 11, as the document has them, for the 12 layers of GPT-2."""
        return cls.standard(**{"fusion_positions": (3, 6, 9, 11), **changes})

    @classmethod
    def for_llama(cls, num_layers: int, **changes: Any) -> FusionConfig:
        """The standard layers spread over ``num_layers``: 8, 16, 24 and 31 of 32."""
        check_whole("num_layers", num_layers, 1, _MAX_LAYERS)
        standard = cls.standard(**changes)
        return replace(standard, fusion_positions=spread(standard.num_fusion_layers, num_layers))

    def without(self, component: str) -> FusionConfig:
        """The same without a component, and without those that work on what it makes.

        Raises: GraftConfigError if nothing is left.
        """
        gone = {component, *(name for name, needed in _NEEDS.items() if needed == component)}
        kept = tuple(name for name in self.enabled_components if name not in gone)
        return replace(self, enabled_components=kept)

    def resolve(self, hidden_dim: int, num_layers: int | None = None) -> FusionConfig:
        """The same with nothing left open, for a model of that width and depth.

        Without ``num_layers`` the positions stay as they are: that is for one layer by itself.
        Raises: GraftConfigError if this is for another width, or a position is beyond the last layer.
        """
        check_whole("hidden_dim", hidden_dim, 1, LARGEST)
        if self.hidden_dim not in (None, hidden_dim):
            raise GraftConfigError(
                f"hidden_dim: got {self.hidden_dim}, expected the model's width {hidden_dim}"
            )
        width = self.fusion_width or default_width(hidden_dim)
        component_width = self.component_width or min(width, default_component_width(hidden_dim))
        if component_width > width:
            raise GraftConfigError(
                f"component_width: got {component_width}, expected at most the fusion width {width}"
            )
        positions = self.fusion_positions
        if num_layers is not None:
            check_whole("num_layers", num_layers, 1, _MAX_LAYERS)
            if positions is None:
                positions = spread(self.num_fusion_layers, num_layers)
            beyond = [position for position in positions if position >= num_layers]
            if beyond:
                raise GraftConfigError(
                    f"fusion_positions: got {', '.join(map(str, beyond))}, expected indices of the model's layers, "
                    f"0 to {num_layers - 1}"
                )
        heads = self.quaternion.num_heads
        if "quaternion" in self.enabled_components:
            heads = check_heads(heads, component_width)
        return replace(
            self,
            hidden_dim=hidden_dim,
            fusion_positions=positions,
            num_fusion_layers=self.num_fusion_layers if positions is None else len(positions),
            fusion_width=width,
            component_width=component_width,
            quaternion=replace(self.quaternion, num_heads=heads),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        plain = asdict(self)
        plain["enabled_components"] = list(self.enabled_components)
        if self.fusion_positions is not None:
            plain["fusion_positions"] = list(self.fusion_positions)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FusionConfig:
        """The configuration that `to_dict` wrote; keys may be left out. Raises: GraftConfigError."""
        known = _known(cls, "", plain)
        for key, kind in _PARTS.items():
            if isinstance(known.get(key), Mapping):
                known[key] = kind(**_known(kind, f"{key}.", known[key]))
        return cls(**known)


def _checked_components(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise GraftConfigError(f"enabled_components: got {given!r}, expected names in a list")
    for name in given:
        if name not in COMPONENTS:
            raise GraftConfigError(
                f"enabled_components: got {name!r}, expected among {', '.join(COMPONENTS)}"
            )
        if given.count(name) > 1:
            raise GraftConfigError(f"enabled_components: got {name!r} more than once, expected each once")
        if name in _NEEDS and _NEEDS[name] not in given:
            raise GraftConfigError(
                f"enabled_components: got {name!r} without {_NEEDS[name]!r}, expected both: "
                f"it works on what that one makes"
            )
    if not given:
        raise GraftConfigError(
            f"enabled_components: got none, expected at least one of {', '.join(COMPONENTS)}"
        )
    return tuple(given)


def _checked_positions(given: object) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise GraftConfigError(f"fusion_positions: got {given!r}, expected layer indices in a list")
    for position in given:
        check_whole("fusion_positions", position, 0, _MAX_LAYERS - 1)
    if len(set(given)) != len(given):
        raise GraftConfigError(f"fusion_positions: got {list(given)}, expected each index once")
    return tuple(sorted(given))


def _known(kind: type, where: str, plain: object) -> dict[str, Any]:
    names = [entry.name for entry in fields(kind)]
    if not isinstance(plain, Mapping):
        raise GraftConfigError(f"{where or 'configuration'}: got {plain!r}, expected values by name")
    unknown = [str(key) for key in plain if key not in names]
    if unknown:
        raise GraftConfigError(
            f"{where}{unknown[0]}: got a key that is not known, expected among {', '.join(names) or 'none'}"
        )
    return dict(plain)
