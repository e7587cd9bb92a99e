"""Where an orchestrator finds the parts of its braid: at given addresses, as its children, or by the registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from braid_orchestrator.assembly import Replicas, Resolver
from braid_orchestrator.config.values import FUSION, BraidConfig
from braid_orchestrator.state.discovery import Discovery
from braid_orchestrator.state.registry import Registry
from braid_orchestrator.state.store import StateStore


class Places:
    """The parts of one braid. Those whose place is ``fixed`` are looked for nowhere else."""

    def __init__(
        self, config: BraidConfig, store: StateStore, targets: Mapping[str, str], fixed: Collection[str]
    ) -> None:
        """``targets`` are those known from the start: of children, and of the fixed ones."""
        self._config = config
        self._targets = dict(targets)
        names = [shard.name for shard in config.shards]
        if config.fusion.placement == "service":
            names.append(FUSION)
        shared = config.state.store != "memory"
        self._found = {
            name: Discovery(Registry(store), name, [targets[name]] if name in targets else [])
            for name in names
            if name not in fixed and (shared or name not in targets)
        }

    def wait(self, give_up_s: float, check_alive: Callable[[], None]) -> None:
        """Until everything that has to be found is found. Raises: UnavailableError, naming what is not."""
        for discovery in self._found.values():
            discovery.wait(max(give_up_s - time.monotonic(), 0.0), check_alive)

    def shards(self) -> dict[str, Resolver | Replicas]:
        """For `assembly.assemble_remote`."""
        return {shard.name: self._shard(shard.name) for shard in self._config.shards}

    def fusion(self) -> Resolver | None:
        """For `assembly.assemble_remote`; None where the fusion modules are embedded."""
        if FUSION in self._found:
            return self._found[FUSION].any_target
        if FUSION in self._targets:
            return lambda: self._targets[FUSION]
        return None

    def _shard(self, name: str) -> Resolver | Replicas:
        if name in self._found:
            return Replicas(self._found[name].targets, self._config.state.heartbeat_s)
        return lambda: self._targets[name]
