"""Which version of the fusion weights is evaluated, and its modules. Runs nothing."""

from __future__ import annotations

from pathlib import Path

from braid_fusion.packed_weights import parse_card, unpack_into
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.config.values import FusionConfig
from braid_orchestrator.inprocess.fusion_files import load_modules
from braid_orchestrator.state.fusion_version import FusionVersion
from braid_orchestrator.state.fusion_weights import FusionWeights
from braid_orchestrator.state.store import StateStore
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.translation import braid_errors


def weights_to_evaluate(
    plan: BraidPlan, config: FusionConfig, given: Path | None = None, store: StateStore | None = None
) -> tuple[FusionStack, str]:
    """Modules with their weights, and the version's name.

    Args:
        given: a version's folder or file, which counts before all else.
        store: where a braid's orchestrators agree on the active version, which counts before the configuration's.

    Raises: WeightMismatchError for weights of another plan, naming what differs; UnknownVersionError,
        CorruptWeightsError, UnavailableError.
    """
    if given is not None:
        stack = FusionStack(plan)
        load_modules(stack, given)
        return stack.eval(), given.name
    version = config.version
    if store is not None:
        active = FusionVersion(store).get()
        published = None if active is None else FusionWeights(store).fetch(active)
        if active is not None and published is not None:
            card_json, data = published
            where = f"state store: version {active!r}"
            stack = FusionStack(plan)
            with braid_errors():
                unpack_into(stack, parse_card(active, card_json, where), data, where)
            return stack.eval(), active
        version = active or version
    backend = FusionBackend(config.weights, version)
    backend.prepare(plan)
    return backend.versions.stack(backend.active_version), backend.active_version
