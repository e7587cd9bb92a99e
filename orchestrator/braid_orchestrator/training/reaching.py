"""How a trainer reaches the shards of a braid: in its own process, at given addresses, by the state store, or in a
Ray Serve application. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.state.discovery import Discovery
from braid_orchestrator.state.opening import open_store
from braid_orchestrator.state.registry import Registry
from braid_orchestrator.state.store import StateStore
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.remote import RemoteTrainingShard
from braid_rpc.errors import ConfigError, ConflictError, UnavailableError
from braid_services.shard.backend import ShardBackend

Resolver = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Way:
    """Where the parts are: ``targets`` by name, or found in the state store, or in a Ray Serve ``application``.

    None of these: the models are loaded here. Plain values, so that other processes can go the same way.
    """

    targets: Mapping[str, str] | None = None
    in_store: bool = False
    application: str | None = None

    @property
    def loads_here(self) -> bool:
        """Whether no services are asked."""
        return self == Way()

    def reach(self, config: BraidConfig, worker: int = 0) -> Reached:
        """Raises: as `load_here`, `connect`, `stored_places` and `serve_places`."""
        if self.targets is not None:
            return connect(config, given_places(self.targets), option="--shard")
        if self.in_store:
            store = open_store(config.state, config.name)
            try:
                reached = connect(config, stored_places(config, store, worker))
            except BaseException:
                store.close()
                raise
            reached.store = store
            return reached
        if self.application is not None:
            return connect(config, serve_places(config, self.application))
        return load_here(config)


@dataclass(slots=True)
class Reached(AbstractContextManager["Reached"]):
    """The shards in the configuration's order, let go of at the end, with the ``store`` that they are found in."""

    shards: list[TrainingShard]
    store: StateStore | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self.shards:
            shard.shutdown()
        if self.store is not None:
            self.store.close()


def load_here(config: BraidConfig) -> Reached:
    """All models in this process. Raises: as `ShardBackend.load`."""
    disable_progress_bar()  # transformers would draw two per model, over ours and into files
    return Reached([LocalTrainingShard(ShardBackend.load(shard)) for shard in config.shards])


def connect(config: BraidConfig, resolvers: Mapping[str, Resolver], option: str = "") -> Reached:
    """Services; ``resolvers`` by the names of shards, given with ``option`` if with any.

    Raises: UnavailableError, ProtocolVersionError; ConflictError where a shard of another name answers.
    """
    reached = Reached([])
    try:
        for shard in config.shards:
            remote = RemoteTrainingShard(
                shard.name, resolvers[shard.name], max_message_bytes=shard.max_message_bytes
            )
            reached.shards.append(remote)
            if remote.card.name != shard.name:
                where = f"{option} {shard.name}" if option else f"shard {shard.name!r}"
                raise ConflictError(
                    f"{where}: got shard {remote.card.name!r} at {remote.target}, expected {shard.name!r}"
                )
    except BaseException:
        reached.__exit__(None, None, None)
        raise
    return reached


def given_places(targets: Mapping[str, str]) -> dict[str, Resolver]:
    """Fixed addresses by part."""

    def at(target: str) -> Resolver:
        return lambda: target

    return {name: at(target) for name, target in targets.items()}


def stored_places(config: BraidConfig, store: StateStore, worker: int = 0) -> dict[str, Resolver]:
    """What is registered in the state store. Workers of different numbers begin with different replicas.

    Raises: UnavailableError if a shard has no replica that answers.
    """
    names = [shard.name for shard in config.shards]
    found = {name: Discovery(Registry(store), name) for name in names}
    for discovery in found.values():
        discovery.wait(5.0)
    return {name: _Turns(discovery, worker) for name, discovery in found.items()}


class _Turns:
    """The replicas of a shard in turn, beginning with the worker's own: whoever asks again had no answer there."""

    def __init__(self, discovery: Discovery, worker: int) -> None:
        self._discovery = discovery
        self._next = worker

    def __call__(self) -> str:
        targets: Sequence[str] = self._discovery.targets()
        if not targets:
            return self._discovery.any_target()  # raises
        self._next += 1
        return targets[(self._next - 1) % len(targets)]


def serve_places(config: BraidConfig, application: str) -> dict[str, Resolver]:
    """The replicas of a Ray Serve application on the cluster that this machine is part of.

    Raises: UnavailableError if there is no cluster or no such application; ConfigError without Ray Serve.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"Ray: not installed ({error}), expected the extra `serve`: pip install '.[serve]'"
        ) from error
    from braid_orchestrator.serve_app import replica_resolver

    if not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            raise UnavailableError(f"Ray: no cluster runs here: {error}") from error
    names = [shard.name for shard in config.shards]
    return {name: replica_resolver(name, serve.get_deployment_handle(name, application)) for name in names}
