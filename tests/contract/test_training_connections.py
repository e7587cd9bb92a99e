"""A shard behind gRPC that goes away in the middle of training, comes back, or comes back as another one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from killable_shard import WITHIN, KillableShard
from models import save_tiny_model, tiny_backend
from torch import Tensor

from braid_orchestrator.training.remote import RemoteTrainingShard
from braid_rpc import channels
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_rpc.errors import FrameError, ShapeMismatchError, UnavailableError, WeightMismatchError
from braid_rpc.training import SpanInputs, SpanOutputs
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend
from braid_services.shard.training import calls

LENGTH, WIDTH = 4, 32
A_YEAR_S = 365 * 24 * 3600.0
# How the shard comes to be another one: between two calls, while one is tried, or by a replica at another address.
WAYS = ("between calls", "within a call", "elsewhere")


class Place:
    """Where a shard is served, by one backend after another, and a trainer's connection to it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._num_served = 0
        self._target = ""
        self._server: Any = None

    def serve(self, backend: ShardBackend, *, elsewhere: bool = False) -> None:
        if elsewhere or not self._target:
            self._num_served += 1
            self._target = f"unix:{self._folder}/{self._num_served}.sock"
        self._server = serve_backend(backend, [self._target])
        self._stack.callback(self._server.stop)

    def stop(self) -> None:
        self._server.stop()

    def connect(self, **options: Any) -> RemoteTrainingShard:
        limits = {"max_message_bytes": DEFAULT_MAX_MESSAGE_BYTES, **options}
        shard = RemoteTrainingShard("right", lambda: self._target, **limits)
        self._stack.callback(shard.shutdown)
        return shard

    def replace(self, backend: ShardBackend, way: str, call: Callable[[], Any]) -> Any:
        """The result of a call that meets ``backend``."""
        self.stop()
        pending = call() if way == "within a call" else None
        self.serve(backend, elsewhere=way == "elsewhere")
        return (pending or call()).result()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), 1)


def loaded(model: Path, dtype: str) -> ShardBackend:
    return ShardBackend.load(ShardConfig("right", str(model), dtype=dtype))


def span(start: int, end: int) -> SpanInputs[Tensor]:
    hidden_TD = torch.ones(LENGTH, WIDTH) if start else None
    return SpanInputs(start, end, (LENGTH,), torch.arange(LENGTH), hidden_TD)


GRADIENTS = SpanOutputs(hidden=torch.ones(LENGTH, WIDTH))


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_one_of_another_precision_is_refused(way: str, start: int, place: Place, model: Path) -> None:
    place.serve(loaded(model, "float32"))
    shard = place.connect()
    assert shard.forward(span(start, 2)).result().hidden is not None
    with pytest.raises(
        WeightMismatchError,
        match=r"shard 'right': .*got dtype bfloat16 instead of float32, with which training began",
    ):
        place.replace(loaded(model, "bfloat16"), way, lambda: shard.forward(span(start, 2)))


@pytest.mark.parametrize("shape", [{"width": 48}, {"num_layers": 1}])
@pytest.mark.parametrize("way", WAYS)
def test_one_of_another_shape_is_told_as_another_model(way: str, shape: dict[str, int], place: Place) -> None:
    place.serve(tiny_backend("right", 1))
    shard = place.connect()
    assert shard.forward(span(1, 2)).result().hidden is not None
    with pytest.raises(
        WeightMismatchError, match=r"shard 'right': .*got model \w+ instead of \w+, with which training began"
    ):
        place.replace(tiny_backend("right", 1, **shape), way, lambda: shard.forward(span(1, 2)))


def test_a_refusal_of_the_same_shard_stays_what_it_is(place: Place) -> None:
    place.serve(tiny_backend("right", 1))
    shard = place.connect()
    wrong = SpanInputs(1, 2, (LENGTH,), torch.arange(LENGTH), torch.ones(LENGTH, 2))
    with pytest.raises(ShapeMismatchError, match="shard 'right'"):
        shard.forward(wrong).result()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", ["model", "dtype"])
def test_another_one_gets_no_inputs_to_compute_a_gradient_anew(
    other: str, way: str, place: Place, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.serve(loaded(model, "float32"))
    shard = place.connect()
    shard.forward(span(1, 2), "graph").result()
    backend = tiny_backend("right", 9) if other == "model" else loaded(model, "bfloat16")
    computed: list[object] = []
    monkeypatch.setattr(backend.training, "_run", lambda *given: computed.append(given))
    with pytest.raises(WeightMismatchError, match=rf"shard 'right': .*got {other} \w+ instead of"):
        place.replace(backend, way, lambda: shard.backward("graph", GRADIENTS, span(1, 2)))
    assert not computed


def test_a_reply_beyond_the_limit_is_computed_once_and_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = tiny_backend("right", 1)
    place.serve(backend)
    calls = count(monkeypatch, backend, "forward")
    shard = place.connect(max_message_bytes=4000, patience_s=1.0)
    with pytest.raises(
        FrameError,
        match=r"shard 'right': .*got a reply of \d+ bytes, expected at most 4000, the client's max_mess",
    ):
        shard.forward(SpanInputs(0, 1, (64,), torch.arange(64))).result()
    assert len(calls) == 1


def test_patience_is_for_a_shard_that_is_away_not_for_one_that_computes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = tiny_backend("right", 1)
    patience_s = 1.0

    def work(number: int) -> None:
        if number == 2:
            time.sleep(1.2 * patience_s)  # and then its process ends
        if number < 3:
            raise UnavailableError("gone")

    calls = count(monkeypatch, backend, "forward", work)
    place.serve(backend)
    shard = place.connect(patience_s=patience_s)
    assert shard.forward(span(0, 1)).result().hidden is not None
    assert len(calls) == 3


def test_a_call_may_take_as_long_as_a_shard_that_is_there_lets_it_wait(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s: list[float] = []
    check = calls._check

    def note(context: Any) -> Callable[[], None]:
        left_s.append(context.time_remaining())
        return check(context)

    monkeypatch.setattr(calls, "_check", note)
    place.serve(tiny_backend("right", 1))
    shard = place.connect()
    shard.forward(span(1, 2), "graph").result()
    shard.backward("graph", GRADIENTS, span(1, 2)).result()
    assert len(left_s) == 2 and min(left_s) > A_YEAR_S


@pytest.mark.timeout(300)
def test_a_call_to_a_shard_that_stands_still_ends_in_its_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is there, and its connection open; but nobody answers pings."""
    honest = channels.channel_options

    def hasty(max_message_bytes: int) -> channels.Options:
        options = [
            (name, 1000 if name == "grpc.keepalive_time_ms" else value)
            for name, value in honest(max_message_bytes)
        ]
        return [*options, ("grpc.http2.ping_timeout_ms", 5000)]

    monkeypatch.setattr(channels, "channel_options", hasty)
    target = f"unix:{tmp_path}/right.sock"
    with KillableShard(1, target, hang_at=1) as frozen, ExitStack() as stack:
        frozen.serve()
        shard = RemoteTrainingShard(
            "right", lambda: target, patience_s=1.0, max_message_bytes=DEFAULT_MAX_MESSAGE_BYTES
        )
        stack.callback(shard.shutdown)
        pending = shard.forward(span(0, 1))
        frozen.wait_for(WITHIN)
        frozen.process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError, match="shard 'right'"):
            pending.result()


def test_one_call_has_one_patience_also_where_its_inputs_are_sent_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = tiny_backend("right", 1)
    calls = count(monkeypatch, backend, "_run", lambda number: fail_at_once())
    place.serve(backend)
    shard = place.connect(patience_s=0.5)
    with pytest.raises(UnavailableError, match="shard 'right'"):
        shard.backward("never kept", GRADIENTS, span(1, 2)).result()
    assert 1 <= len(calls) <= 3  # pauses of 0.1 and 0.2 s; the next one would be too long


def fail_at_once() -> None:
    raise UnavailableError("gone")


def count(
    monkeypatch: pytest.MonkeyPatch,
    backend: ShardBackend,
    method: str,
    work: Callable[[int], None] = lambda number: None,
) -> list[object]:
    """What a shard's training method is called with; before each call ``work`` gets its number, from 1."""
    calls: list[object] = []
    really = getattr(backend.training, method)

    def counted(*given: object) -> object:
        calls.append(given)
        work(len(calls))
        return really(*given)

    monkeypatch.setattr(backend.training, method, counted)
    return calls
