"""The maths of braiding, in pure torch: fusion modules, injection, readout. Knows no network.

``braid_fusion.plan`` stays importable without torch; everything else is fetched on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "BenettinTwin": "resonance.lyapunov",
    "DecisionClassifier": "deciding",
    "cheapest_answers": "deciding",
    "load_classifier": "deciding",
    "register_predicate": "deciding",
    "save_classifier": "deciding",
    "train_classifier": "deciding",
    "CoherenceGateConfig": "resonance.config",
    "FusionConfig": "resonance.config",
    "GraftConfigError": "errors",
    "GraftOutput": "resonance.layer",
    "KuramotoConfig": "resonance.config",
    "PRSCConfig": "resonance.config",
    "PrimeConfig": "resonance.config",
    "QuaternionConfig": "resonance.config",
    "GraftCacheError": "errors",
    "NonFiniteStateError": "errors",
    "ResonanceCore": "resonance.core",
    "ResonanceFusionLayer": "resonance.layer",
    "ResonanceGenerator": "grafting.generator",
    "ResonanceWrapper": "grafting.wrapper",
    "SMFConfig": "resonance.config",
    "BraidPlan": "plan",
    "PlanPoint": "plan",
    "PlanReadout": "plan",
    "PlanShard": "plan",
    "FusionContext": "context",
    "AttentionFusion": "strategies",
    "FusionLayer": "strategies",
    "LearnedWeightedFusion": "strategies",
    "MlpFusion": "strategies",
    "RouterFusion": "strategies",
    "StitchFusion": "strategies",
    "WeightedFusion": "strategies",
    "FusionStack": "stack",
    "FusionStrategy": "strategies",
    "FusionTrainer": "grafting.training",
    "GeneratedToken": "grafting.generation",
    "GenerationConfig": "grafting.generation",
    "GenerationResult": "grafting.generation",
    "NUM_LOGIT_FEATURES": "mixing",
    "LyapunovMonitor": "resonance.lyapunov",
    "PointOutput": "point",
    "StabilityMetrics": "resonance.stability",
    "StabilityMonitor": "resonance.stability",
    "TemperatureControl": "resonance.stability",
    "TokenStability": "resonance.stability",
    "TrainingConfig": "grafting.training_config",
    "create_fusion_dataset": "grafting.dataset",
    "finite_time_exponent": "resonance.lyapunov",
    "list_versions": "weights",
    "load_stack": "weights",
    "load_weights": "weights",
    "logit_features": "mixing",
    "make_strategy": "strategies",
    "PackedWeights": "packed_weights",
    "pack_stack": "packed_weights",
    "mix_logits": "mixing",
    "read_card": "weights",
    "register_strategy": "strategies",
    "save_stack": "weights",
    "CoherenceGatingLayer": "resonance.coherence",
    "KuramotoModule": "resonance.kuramoto",
    "PRSC": "resonance.prsc",
    "PrimeProjection": "resonance.primes",
    "QuaternionAttention": "resonance.quaternion_attention",
    "SMF": "resonance.smf",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
