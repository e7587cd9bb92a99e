"""Shards that trainers find in the state store: the same training, whichever replicas answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from programs import eventually, tiny_braid_settings
from redis_server import RedisServer

from braid_fusion.training import read_log
from braid_fusion.weights import read_card
from braid_orchestrator.config.schema import parse_braid_config
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.state.lease import Lease, shard_record
from braid_orchestrator.state.opening import open_store
from braid_orchestrator.state.registry import Registry
from braid_orchestrator.training.job import TrainingJob, do_job
from braid_orchestrator.training.reaching import Way
from braid_orchestrator.training.run import RunOptions
from braid_orchestrator.training.workers import do_job_with_workers
from braid_rpc.errors import UnavailableError
from braid_services.serving import RunningServer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

# Gradients of two workers are added up in another order than those of one.
TOLERANCE = 1e-5


@dataclass
class Replica:
    """``num_spans`` were run for training."""

    server: RunningServer
    num_spans: int = 0


Start = Callable[[str], Replica]


@pytest.fixture
def config(redis_server: RedisServer, tmp_path: Path) -> BraidConfig:
    settings = {**tiny_braid_settings(tmp_path), "state": {"store": "redis", "url": redis_server.url}}
    return parse_braid_config(settings, {})


@pytest.fixture
def start(config: BraidConfig) -> Iterator[Start]:
    """Starts one more replica of a shard, and waits until it is registered."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(config.state, config.name)))
        shards = {shard.name: shard for shard in config.shards}

        def begin(name: str) -> Replica:
            known = len(Registry(store).replicas(name))
            backend = ShardBackend.load(shards[name])
            run_span = backend.training.forward

            def counted(*arguments: Any) -> Any:
                replica.num_spans += 1
                return run_span(*arguments)

            backend.training.forward = counted  # type: ignore[method-assign]
            server = stack.enter_context(serve_backend(backend, ["127.0.0.1:0"]))
            replica = Replica(server)
            describe = shard_record(name, server.targets, None)
            stack.enter_context(Lease(store, describe, config.state.heartbeat_s, config.state.expiry_s))
            eventually(lambda: len(Registry(store).replicas(name)) > known, 20.0, f"{name} is registered")
            return replica

        yield begin


def job(config: BraidConfig, tmp_path: Path, way: Way, name: str) -> TrainingJob:
    text = tmp_path / "text.txt"
    text.write_text("the thing in the other inner theatre is thin there " * 12)
    options = RunOptions(steps=3, window=12, batch_size=2)
    return TrainingJob(config, way, (str(text),), tmp_path / name, held_out_share=0.2, options=options)


def test_registered_replicas_are_found_and_one_that_just_died_is_passed_over(
    config: BraidConfig, start: Start, tmp_path: Path
) -> None:
    dead = start("left")
    start("left")
    start("right")
    dead.server.stop()  # its entry is there until it expires
    found = do_job(job(config, tmp_path, Way(in_store=True), "found"), progress_bar=False)
    here = do_job(job(config, tmp_path, Way(), "here"), progress_bar=False)
    assert found.weights is not None and here.weights is not None
    assert read_card(found.weights).weights_sha256 == read_card(here.weights).weights_sha256


def test_a_shard_that_nobody_registered_is_named(config: BraidConfig, start: Start, tmp_path: Path) -> None:
    start("left")
    with pytest.raises(UnavailableError, match="'right': no replica is registered"):
        do_job(job(config, tmp_path, Way(in_store=True), "run"), progress_bar=False)


# Ray Train uses what Ray Data deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_worker_has_a_replica_of_its_own_and_together_they_have_the_same_curve(
    config: BraidConfig, start: Start, ray_cluster: None, tmp_path: Path
) -> None:
    replicas = {name: [start(name), start(name)] for name in ("left", "right")}
    shared = job(config, tmp_path, Way(in_store=True), "two")
    do_job_with_workers(shared, 2, progress_bar=False)
    spans = {name: [replica.num_spans for replica in both] for name, both in replicas.items()}
    alone = replace(shared, way=Way(), folder=tmp_path / "one", options=replace(shared.options, accumulate=2))
    do_job(alone, progress_bar=False)
    curves = [
        [line["loss"] for line in read_log(tmp_path / name / "log.jsonl") if "loss" in line]
        for name in ("two", "one")
    ]
    assert len(curves[0]) == 3 and curves[0] == pytest.approx(curves[1], abs=TOLERANCE)
    assert all(count > 0 for counts in spans.values() for count in counts), spans
