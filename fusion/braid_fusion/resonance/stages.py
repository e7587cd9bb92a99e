"""What each component does to the stream of one layer: in from the component width, and back to it. Knows neither the
order of the stages nor what becomes of their outputs; that is the core's.

Letters: T packed rows, S shards, C component width, P primes, A components of an amplitude, N oscillators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Generator, Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.initialisation import linear
from braid_fusion.resonance.coherence import (
    CoherenceGate,
    coherence_from_entropy,
    entropy,
    entropy_of,
    squared,
)
from braid_fusion.resonance.config import FusionConfig
from braid_fusion.resonance.history import run_by_sequence
from braid_fusion.resonance.kuramoto import KuramotoModule, order_of
from braid_fusion.resonance.primes import PrimeProjection
from braid_fusion.resonance.prsc import PRSC
from braid_fusion.resonance.quaternion_attention import QuaternionAttention
from braid_fusion.resonance.smf import SMF

# Each stage's part of a sequence's cache.
_COMPOSITION, _ATTENTION, _MEMORY = range(3)


@dataclass(slots=True)
class Scene:
    """One call: the shards' states as they entered, and what the stages measured of each row, (T,) each."""

    states_TC: Sequence[Tensor]  # noqa: N815 - shape letters
    context: FusionContext
    row_metrics: dict[str, Tensor] = field(default_factory=dict)


class PrimeStage(nn.Module):
    """Amplitudes over primes, each scaled by m / (m + m̄), back to the component width: m a prime's mass, m̄ the mean.

    The scaling, a divisive normalisation, makes the way there and back more than one linear map: primes with much
    mass pass, the others are suppressed. With ``prsc`` the amplitudes are composed with those of the position before,
    first. What is projected may be a sum over shards: the projection is linear, so that their amplitudes superpose,
    and the masses hold their interference.
    """

    def __init__(self, config: FusionConfig, measures: bool, generator: Generator | None) -> None:
        super().__init__()
        width, prime = cast(int, config.component_width), config.prime
        self.measures = measures
        self.projection = PrimeProjection(
            width, prime.num_primes, prime.use_quaternion, prime.learnable_phases, generator
        )
        amplitude_dim = self.projection.amplitude_dim
        self.composition = (
            PRSC(prime.num_primes, amplitude_dim) if "prsc" in config.enabled_components else None
        )
        self.back = linear(prime.num_primes * amplitude_dim, width, generator, bias=False)

    def forward(self, stream_TC: Tensor, scene: Scene) -> Tensor:
        states_TPA = self.projection(stream_TC)
        if self.composition is not None:
            states_TPA = run_by_sequence(self.composition, [states_TPA], scene.context, _COMPOSITION)
        mass_TP = squared(states_TPA)
        if self.measures or scene.context.want_metrics:
            entropy_T = entropy_of(mass_TP)
            scene.row_metrics["prime_entropy"] = entropy_T
            scene.row_metrics["prime_coherence"] = coherence_from_entropy(entropy_T, states_TPA.shape[-2])
        passed_TP = mass_TP / torch.add(mass_TP, mass_TP.sum(-1, keepdim=True), alpha=1.0 / mass_TP.shape[-1])
        back_TC: Tensor = self.back((states_TPA * passed_TP.unsqueeze(-1).to(states_TPA.dtype)).flatten(1))
        return back_TC


class AttentionStage(nn.Module):
    """Quaternion attention to the positions so far."""

    def __init__(self, config: FusionConfig, generator: Generator | None) -> None:
        super().__init__()
        self.attention = QuaternionAttention(
            cast(int, config.component_width),
            cast(int, config.quaternion.num_heads),
            config.quaternion.golden_ratio_heads,
            generator,
        )

    def forward(self, stream_TC: Tensor, scene: Scene) -> Tensor:
        return run_by_sequence(self.attention, [stream_TC], scene.context, _ATTENTION)


class MemoryStage(nn.Module):
    """The memory field, written to as much as the positions are coherent; the prime stage has measured that."""

    def __init__(self, config: FusionConfig, generator: Generator | None) -> None:
        super().__init__()
        self.memory = SMF(cast(int, config.component_width), generator=generator)

    def forward(self, stream_TC: Tensor, scene: Scene) -> Tensor:
        coherence_T = scene.row_metrics["prime_coherence"]
        return run_by_sequence(self.memory, [stream_TC, coherence_T], scene.context, _MEMORY)


class OscillatorStage(nn.Module):
    """Oscillators of each position, coupled; cosines and sines of their phases, back to the component width.

    With several shards there are N oscillators of the stream and N of each shard, all coupled to all: the order
    parameter tells how well they agree.
    """

    def __init__(self, config: FusionConfig, num_shards: int, generator: Generator | None) -> None:
        super().__init__()
        width, options = cast(int, config.component_width), config.kuramoto
        self.oscillators = KuramotoModule(
            width,
            options.coupling,
            options.num_steps,
            options.num_oscillators,
            use_learned_frequencies=options.use_learned_frequencies,
            generator=generator,
        )
        self.num_groups = 1 if num_shards == 1 else num_shards + 1
        self.back = linear(2 * self.num_groups * options.num_oscillators, width, generator, bias=False)

    def forward(self, stream_TC: Tensor, scene: Scene) -> Tensor:
        groups = [stream_TC] if self.num_groups == 1 else [stream_TC, *scene.states_TC]
        phases_TN = self.oscillators.synchronise(
            [self.oscillators.to_phases(group_TC) for group_TC in groups]
        )
        cos_TN, sin_TN = phases_TN.cos(), phases_TN.sin()
        if scene.context.want_metrics:
            scene.row_metrics["kuramoto_order"] = order_of(cos_TN, sin_TN)
        back_TC: Tensor = self.back(torch.cat([cos_TN, sin_TN], dim=-1).to(stream_TC.dtype))
        return back_TC


class GateStage(nn.Module):
    """A gate for each row by how coherent its amplitudes are: those of the prime stage, or else some of its own."""

    def __init__(self, config: FusionConfig, generator: Generator | None) -> None:
        super().__init__()
        prime, gate = config.prime, config.coherence_gate
        self.projection = None
        if "prime" not in config.enabled_components:
            self.projection = PrimeProjection(
                cast(int, config.component_width), prime.num_primes, prime.use_quaternion, generator=generator
            )
        amplitude_dim = 4 if prime.use_quaternion else 2
        self.gate = CoherenceGate(prime.num_primes, amplitude_dim, gate.threshold, gate.soft_gate)

    def forward(self, stream_TC: Tensor, scene: Scene) -> Tensor:
        """(T,), in (0, 1)."""
        if self.projection is None:
            coherence_T = scene.row_metrics["prime_coherence"]
        else:
            states_TPA = self.projection(stream_TC)
            coherence_T = coherence_from_entropy(entropy(states_TPA), states_TPA.shape[-2])
        gate_T: Tensor = self.gate(coherence_T)
        if scene.context.want_metrics:
            scene.row_metrics |= {"gate_coherence": coherence_T, "gate": gate_T}
        return gate_T
