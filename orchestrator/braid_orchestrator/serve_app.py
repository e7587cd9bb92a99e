"""The braid as a Ray Serve application: `build` is the ``import_path`` of deploy/braid.yaml.

One deployment per shard, named after it; one for the fusion modules, named ``fusion``; and the ingress,
``orchestrator``, which answers HTTP and gRPC. Serve places, supervises and restarts them. Hidden states never
pass through it: a shard's replica opens a gRPC server of its own, and the orchestrator asks for its address by
a handle and connects directly, again whenever a replica was replaced.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve

from braid_orchestrator.config.files import locate_files
from braid_orchestrator.config.schema import parse_braid_config
from braid_orchestrator.config.values import FUSION, ORCHESTRATOR, BraidConfig, FusionConfig, StateConfig
from braid_orchestrator.http.app import create_app
from braid_orchestrator.logs import configure_logs
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.grpc_servicer import BraidRpc, ServeContext, check_metadata, fail_serve_call
from braid_orchestrator.serving.metrics import MeteredService
from braid_orchestrator.serving.port import BraidPort
from braid_orchestrator.serving.probing import probe
from braid_orchestrator.state.discovery import Discovery
from braid_orchestrator.state.lease import Lease, shard_record
from braid_orchestrator.state.opening import open_store
from braid_orchestrator.state.registry import Registry
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import UnavailableError
from braid_rpc.v1 import braid_pb2
from braid_services.serving import RunningServer
from braid_services.shard.config import ShardConfig

if TYPE_CHECKING:
    from braid_orchestrator.assembly import Replicas, Resolver

# Long enough for Serve to notice that a replica is gone; the engine asks again after that.
RESOLVE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where a replica listens: a socket file for its own node, and a port for the others."""

    node_id: str
    unix: str
    tcp: str

    def target(self, node_id: str) -> str:
        """The shortest way there from a node."""
        near = self.node_id == node_id and Path(self.unix.removeprefix("unix:")).exists()
        return self.unix if near else self.tcp


class _Replica:
    """A gRPC server inside a Serve replica. It has threads of its own: Serve's event loop is never blocked."""

    def __init__(
        self,
        name: str,
        start: Callable[[list[str]], RunningServer],
        lease: Callable[[list[str]], Lease | None] = lambda targets: None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="braid-")
        unix = f"unix:{self._folder.name}/{name[:32]}.sock"
        self._server = start([unix, f"{ray.util.get_node_ip_address()}:0"])
        unix, tcp = self._server.targets
        self._address = ReplicaAddress(ray.get_runtime_context().get_node_id(), unix, tcp)
        self._lease = lease([unix, tcp])
        if self._lease is not None:
            self._lease.__enter__()

    async def address(self) -> ReplicaAddress:
        """Where to connect."""
        return self._address

    async def check_health(self) -> None:
        """Raises: UnavailableError if the server does not answer, upon which Serve replaces the replica."""
        await asyncio.to_thread(probe, self._address.unix)

    def __del__(self) -> None:
        lease: Lease | None = getattr(self, "_lease", None)
        if lease is not None:
            lease.__exit__()
        if hasattr(self, "_server"):
            self._server.stop()
        self._folder.cleanup()


def _configure_logs() -> None:
    """Ray's own ways unless the environment asks for others."""
    if {"BRAID_LOG_FORMAT", "BRAID_LOG_LEVEL"} & set(os.environ):
        configure_logs(os.environ)


class ShardReplica(_Replica):
    """One base model, served. Where it can't be loaded, the deployment fails with the reason."""

    def __init__(self, config: ShardConfig, state: StateConfig, braid: str) -> None:
        from braid_services.shard.main import serve_shard

        def lease(targets: list[str]) -> Lease | None:
            """All replicas of a shard are found in the store, where there is one that others share."""
            if state.store == "memory":
                return None
            describe = shard_record(config.name, targets, None)
            return Lease(open_store(state, braid), describe, state.heartbeat_s, state.expiry_s)

        _configure_logs()
        super().__init__(config.name, lambda targets: serve_shard(config, targets), lease)


class FusionReplica(_Replica):
    """The fusion modules, served. They are built when the orchestrator sends its plan."""

    def __init__(self, config: FusionConfig) -> None:
        from braid_services.fusion.main import serve_fusion

        _configure_logs()
        super().__init__(
            FUSION,
            lambda targets: serve_fusion(
                config.weights,
                config.version,
                targets,
                config.threads,
                imports=config.imports,
                max_publish_bytes=config.max_publish_bytes,
            ),
        )


class OrchestratorReplica:
    """The ingress: the engine in a thread of its own, HTTP by `create_app`, gRPC by the methods below."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: BraidConfig, shards: dict[str, Any], fusion: Any | None
    ) -> None:
        from braid_orchestrator.assembly import Replicas, assemble_remote

        _configure_logs()
        # Before anything is assembled, wait without a limit: a large model takes long to load.
        await asyncio.gather(
            *(handle.address.remote() for handle in (*shards.values(), *filter(None, [fusion])))
        )
        sources: dict[str, Resolver | Replicas] = {
            name: replica_resolver(name, handle) for name, handle in shards.items()
        }
        store: StateStore | None = None
        if config.state.store != "memory":
            store = open_store(config.state, config.name)
            found = {name: Discovery(Registry(store), name) for name in shards}
            for discovery in found.values():
                await asyncio.to_thread(discovery.wait, RESOLVE_TIMEOUT_S)
            sources = {name: Replicas(one.targets, config.state.heartbeat_s) for name, one in found.items()}
        self._service = await asyncio.to_thread(
            assemble_remote,
            config,
            sources,
            None if fusion is None else replica_resolver(FUSION, fusion),
            store,
        )
        self.metered = MeteredService(self._service)
        self.keys = ApiKeys.load(config.auth.api_keys_file, os.environ)
        self._rpc = BraidRpc(lambda: self.metered, has_keys=self.keys is not None)

    async def check_health(self) -> None:
        """Raises only if the engine is stuck: a missing shard is no reason to replace the orchestrator."""
        self._service.check_alive()

    async def Generate(  # noqa: N802  the protocol's name
        self, request: braid_pb2.GenerateRequest, grpc_context: ServeContext
    ) -> AsyncGenerator[braid_pb2.GenerateEvent, None]:
        """Stream a completion."""
        try:
            self._admit(grpc_context)
            await self._rpc.admit(grpc_context, "Generate")
            async with aclosing(self._rpc.generate(request)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status for it
            fail_serve_call(grpc_context, error, "Generate")
            yield braid_pb2.GenerateEvent()

    async def Score(  # noqa: N802
        self, request: braid_pb2.ScoreRequest, grpc_context: ServeContext
    ) -> braid_pb2.ScoreReply:
        """Log-probabilities of a text."""
        try:
            self._admit(grpc_context)
            await self._rpc.admit(grpc_context, "Score")
            return await self._rpc.score(request)
        except Exception as error:  # noqa: BLE001
            fail_serve_call(grpc_context, error, "Score")
            return braid_pb2.ScoreReply()

    async def Describe(  # noqa: N802
        self, request: braid_pb2.DescribeBraidRequest, grpc_context: ServeContext
    ) -> braid_pb2.BraidCard:
        """What the braid is made of."""
        try:
            self._admit(grpc_context)
            return await self._rpc.describe(request)
        except Exception as error:  # noqa: BLE001
            fail_serve_call(grpc_context, error, "Describe")
            return braid_pb2.BraidCard()

    async def Cancel(  # noqa: N802
        self, request: braid_pb2.CancelRequest, grpc_context: ServeContext
    ) -> braid_pb2.CancelReply:
        """End a running request."""
        try:
            self._admit(grpc_context)
            return await self._rpc.cancel(request)
        except Exception as error:  # noqa: BLE001
            fail_serve_call(grpc_context, error, "Cancel")
            return braid_pb2.CancelReply()

    def _admit(self, context: ServeContext) -> None:
        if self.keys is not None:
            check_metadata(self.keys, context.invocation_metadata())

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.stop()


def _orchestrator() -> OrchestratorReplica:
    """The replica in which this runs."""
    replica: OrchestratorReplica | None = serve.get_replica_context().servable_object
    if replica is None:
        raise UnavailableError("the orchestrator is starting", retry_after_s=1.0)
    return replica


def _service() -> BraidPort:
    return _orchestrator().metered


def _count_response(route: str, method: str, status: int) -> None:
    with suppress(UnavailableError):  # still starting: there is nothing yet that counts
        _orchestrator().metered.count_response(route, method, status)


def _app() -> FastAPI:
    """Called once in every replica of the ingress."""
    return create_app(
        _service,
        lambda: _orchestrator().metered.render_metrics(),
        get_keys=lambda: _orchestrator().keys,
        count_response=_count_response,
    )


def replica_resolver(name: str, handle: Any) -> Callable[[], str]:
    """Asks Serve where a replica of that deployment listens now."""
    node_id = ray.get_runtime_context().get_node_id()

    def resolve() -> str:
        try:
            address: ReplicaAddress = handle.address.remote().result(timeout_s=RESOLVE_TIMEOUT_S)
        except Exception as error:
            raise UnavailableError(
                f"deployment {name!r} has no replica that answers: {type(error).__name__}"
            ) from error
        return address.target(node_id)

    return resolve


shard_deployment = serve.deployment(ShardReplica)
fusion_deployment = serve.deployment(FusionReplica)
orchestrator_deployment = serve.deployment(serve.ingress(_app)(OrchestratorReplica))


def build(args: dict[str, Any]) -> Any:
    """The application that a braid's settings describe; replicas and resources stand beside them in the file.

    Raises: ConfigError, naming the key, what it got and what it expected.
    """
    config = locate_files(parse_braid_config(args, os.environ))
    shards = {
        shard.name: shard_deployment.options(name=shard.name).bind(shard, config.state, config.name)
        for shard in config.shards
    }
    fusion = None
    if config.fusion.placement == "service":
        fusion = fusion_deployment.options(name=FUSION).bind(config.fusion)
    return orchestrator_deployment.options(name=ORCHESTRATOR, max_ongoing_requests=1000).bind(
        config, shards, fusion
    )
