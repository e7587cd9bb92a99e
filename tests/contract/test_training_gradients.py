"""Gradients through shards, in process and over real gRPC, are those of plain autograd."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch
from braids import braid_config, running, shake, two_backends
from families import make_model
from models import byte_tokenizer, reading_backend, tiny_backend, tiny_llama
from torch import Tensor
from training_shards import (
    TRANSPORTS,
    gradients_of,
    pass_logprobs,
    plain_logprobs,
    remote,
    training_shards,
)

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig, ReadoutConfig
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.lockstep import run_spans
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import (
    FrameError,
    InvalidRequestError,
    UnavailableError,
    UnsupportedModelError,
    WeightMismatchError,
)
from braid_rpc.training import HeadInputs, SpanInputs
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend

# Two orders of the same sums in float32, relative to the largest gradient.
TOLERANCE = 1e-5
LENGTHS = (9, 4, 6)
# The last two are a turn, and the first is one.
TURN_ROWS = 10
POINTS = {
    "one": (PointConfig(at=1, strategy="mlp"),),
    "several": (
        PointConfig(at=0, strategy="weighted"),
        PointConfig(at=1, strategy="attention"),
        PointConfig(at=1, name="again", strategy="stitch"),
        PointConfig(at=2, strategy="router", injection="replace"),
    ),
    "one way": (PointConfig(at=2, strategy="mlp", receivers=("left",)),),
    "none": (),
}


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends(training_turn_rows=TURN_ROWS)


@pytest.fixture(scope="module", params=TRANSPORTS)
def shards(request: pytest.FixtureRequest, backends: list[ShardBackend]) -> Iterator[list[TrainingShard]]:
    with training_shards(backends, request.param) as shards:
        yield shards


def stack_of(backends: Sequence[ShardBackend], **parts: object) -> FusionStack:
    stack = FusionStack(resolve_plan(braid_config(**parts), [backend.card for backend in backends]))  # type: ignore[arg-type]
    shake(stack, 1)
    return stack


def texts(vocab_size: int = 261) -> tuple[Tensor, list[int], Tensor, list[int]]:
    generator = torch.Generator().manual_seed(7)
    ids_T = torch.randint(0, vocab_size, (sum(LENGTHS),), generator=generator)
    rows = [0, 3, 8, 9, 14, 18]
    return ids_T, list(LENGTHS), torch.randint(0, vocab_size, (len(rows),), generator=generator), rows


def assert_same_gradients(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert scale > 1e-3
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one / scale, other / scale, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("points", "readout"),
    # Without points the anchor alone has nothing to train.
    [pair for pair in product(POINTS, ("anchor", "mixture", "gate")) if pair != ("none", "anchor")],
)
def test_remote_gradients_equal_those_of_plain_autograd(shards, backends, points: str, readout: str) -> None:
    stack = stack_of(backends, points=POINTS[points], readout=ReadoutConfig(readout))
    expected = plain_logprobs(backends, stack, *texts())
    got = pass_logprobs(shards, stack, *texts())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients_of(stack, got), gradients_of(stack, expected))
    assert [len(backend.training.graphs) for backend in backends] == [0, 0]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_through_quantized_shards_equal_those_of_plain_autograd(kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    backends = [
        ShardBackend.from_model(
            tiny_llama(seed, width=64, num_layers=num_layers),
            byte_tokenizer(),
            ShardConfig(name, name, quantization=kind),
        )
        for seed, (name, num_layers) in enumerate((("left", 3), ("right", 4)))
    ]
    stack = stack_of(backends)
    expected = plain_logprobs(backends, stack, *texts())
    with training_shards(backends, "grpc") as shards:
        assert [(shard.card.quantization, shard.card.supports_backward) for shard in shards] == [
            (kind, True)
        ] * 2
        got = pass_logprobs(shards, stack, *texts())
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert_same_gradients(gradients_of(stack, got), gradients_of(stack, expected))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("readout", ["anchor", "mixture", "gate"])
def test_gradients_across_tokenizers_equal_those_of_plain_autograd(readout: str, transport: str) -> None:
    shapes = [{"width": 32, "num_layers": 4}, {"width": 48, "num_layers": 5}, {"width": 24, "num_layers": 4}]
    kinds = ("byte bpe", "llama", "words")
    backends = [
        reading_backend(kind.replace(" ", "-"), kind, seed, context=512, **shape)
        for seed, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    ]
    points = (PointConfig(at=1, strategy="attention"), PointConfig(at=2, strategy="mlp"))
    names = [backend.card.name for backend in backends]
    stack = stack_of(backends, points=points, readout=ReadoutConfig(readout), names=names)
    ids = [
        backends[0].tokenize(text)[0]
        for text in ("Once upon a time, there was a größe 🙂 fox", "they're", "12345 + 678")
    ]
    ids_T = torch.tensor([token_id for own in ids for token_id in own])
    rows = list(range(0, ids_T.shape[0] - 1, 2))
    parts = ids_T, [len(own) for own in ids], ids_T[1:][rows], rows
    expected = plain_logprobs(backends, stack, *parts)
    with training_shards(backends, transport) as shards:
        got = pass_logprobs(shards, stack, *parts)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert_same_gradients(gradients_of(stack, got), gradients_of(stack, expected))
        size = backends[0].card.vocab_size
        with pytest.raises(InvalidRequestError, match=rf"targets: got .* to {size}, expected \[0, {size}\)"):
            pass_logprobs(shards, stack, *parts[:2], torch.full_like(parts[2], size), rows)


def test_gradcheck_through_real_grpc_in_float64() -> None:
    # GPT-2 normalises in its own dtype; llama goes through float32, too coarse for differences.
    backends = [
        ShardBackend.from_model(
            make_model("gpt2", seed, n_embd=8).double(), byte_tokenizer(), ShardConfig(name, name)
        )
        for seed, name in enumerate(("left", "right"))
    ]
    config = braid_config(points=(PointConfig(at=1, strategy="attention"), PointConfig(at=2, strategy="mlp")))
    stack = FusionStack(resolve_plan(config, [backend.card for backend in backends])).double()
    shake(stack, 1)
    ids_T = torch.arange(5)
    with training_shards(backends, "grpc") as shards:
        generator = torch.Generator().manual_seed(0)
        states = [torch.randn(5, 8, dtype=torch.float64, generator=generator) for _ in shards]

        def spans(*hidden: Tensor) -> tuple[Tensor, ...]:
            middle = run_spans(shards, [SpanInputs(1, 2, (3, 2), ids_T)] * 2, hidden)
            head = HeadInputs(torch.tensor([1, 4]), torch.tensor([2, 3]), want_features=True)
            ends = run_spans(
                shards, [SpanInputs(2, 3, (3, 2), ids_T, head=head)] * 2, [one.hidden for one in middle]
            )
            return tuple(value for end in ends for _, value in end.items())

        assert torch.autograd.gradcheck(spans, [state.requires_grad_() for state in states])

        parameters = list(stack.parameters())

        def whole(*values: Tensor) -> Tensor:
            names = [name for name, _ in stack.named_parameters()]
            given = dict(zip(names, values, strict=True))

            class Substituted:
                plan = stack.plan

                @staticmethod
                def parameters():
                    return iter(values)

                @staticmethod
                def fuse(*args):
                    return torch.func.functional_call(_Fuse(stack), _under("stack", given), args)

                @staticmethod
                def read_out(*args):
                    return torch.func.functional_call(_ReadOut(stack), _under("stack", given), args)

            return run_pass(shards, Substituted, ids_T, (3, 2), ids_T).target_logprobs  # type: ignore[arg-type]

        assert torch.autograd.gradcheck(whole, parameters, fast_mode=True)


@pytest.mark.parametrize("want_log_probs", [False, True])
@pytest.mark.parametrize("wrong", [-1, 262])
def test_targets_beyond_the_vocabulary_are_refused_whoever_looks_them_up(
    shards, backends, wrong: int, want_log_probs: bool
) -> None:
    ids_T, lengths, targets_R, rows = texts()
    targets_R[2] = wrong
    low, high = int(targets_R.min()), int(targets_R.max())
    with pytest.raises(
        InvalidRequestError, match=rf"targets: got values from {low} to {high}, expected \[0, 262\)"
    ):
        run_pass(shards, stack_of(backends), ids_T, lengths, targets_R, rows, want_log_probs=want_log_probs)
    assert [len(backend.training.graphs) for backend in backends] == [0, 0], "no span was run"


@pytest.mark.parametrize("readout", ["anchor", "gate"])
def test_second_derivatives_are_refused_not_half_given(shards, backends, readout: str) -> None:
    stack = stack_of(backends, readout=ReadoutConfig(readout))
    loss = -pass_logprobs(shards, stack, *texts()).mean()
    with pytest.raises(RuntimeError, match="_LockstepSpan has no second derivative"):
        torch.autograd.grad(loss, list(stack.parameters()), create_graph=True, allow_unused=True)
    for backend in backends:
        backend.training.graphs.clear()


class _Fuse(torch.nn.Module):
    def __init__(self, stack: FusionStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, *args):
        return self.stack.fuse(*args)


class _ReadOut(_Fuse):
    def forward(self, *args):
        return self.stack.read_out(*args)


def _under(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def test_shards_that_forget_everything_at_once_give_the_same_gradients(shards, backends) -> None:
    stack = stack_of(backends)
    expected = gradients_of(stack, pass_logprobs(shards, stack, *texts()))
    logprobs = pass_logprobs(shards, stack, *texts())
    for backend in backends:
        assert len(backend.training.graphs) > 0
        backend.training.graphs.clear()
    for one, other in zip(gradients_of(stack, logprobs), expected, strict=True):
        assert torch.equal(one, other)


def test_base_parameters_are_bit_identical_after_training(shards, backends) -> None:
    def digest() -> str:
        found = hashlib.sha256()
        for backend in backends:
            for tensor in backend.model.state_dict().values():
                found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    before = digest()
    stack = stack_of(backends)
    optimiser = torch.optim.AdamW(stack.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = -pass_logprobs(shards, stack, *texts()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert digest() == before
    assert all(parameter.grad is None for backend in backends for parameter in backend.model.parameters())


def test_evaluation_leaves_no_graphs(shards, backends) -> None:
    with torch.no_grad():
        pass_logprobs(shards, stack_of(backends), *texts())
    assert [len(backend.training.graphs) for backend in backends] == [0, 0]


def test_training_changes_no_token_of_a_generation_that_runs_meanwhile(shards, backends, tmp_path) -> None:
    config = braid_config()
    stack = stack_of(backends)
    with running(config, backends, "grpc, fusion embedded", tmp_path) as client:
        expected = client.generate("Once upon", max_tokens=40, ignore_eos=True, seed=3).token_ids
        stop = threading.Event()
        passes: list[float] = []

        def train() -> None:
            while not stop.is_set():
                logprobs = pass_logprobs(shards, stack, *texts())
                gradients_of(stack, logprobs)
                passes.append(float(logprobs.detach().sum()))

        thread = threading.Thread(target=train)
        thread.start()
        try:
            for _ in range(3):
                got = client.generate("Once upon", max_tokens=40, ignore_eos=True, seed=3).token_ids
                assert got == expected
        finally:
            stop.set()
            thread.join(60)
    assert len(passes) > 0 and len(set(passes)) == 1


# Over gRPC only


def test_a_shard_that_is_restarted_between_forward_and_backward_costs_time_only(tmp_path) -> None:
    backends = two_backends()
    stack = stack_of(backends)
    targets = [f"unix:{tmp_path}/{index}.sock" for index in range(2)]
    servers = [serve_backend(backend, [target]) for backend, target in zip(backends, targets, strict=True)]
    shards = [remote(backend.card.name, target) for backend, target in zip(backends, targets, strict=True)]
    try:
        expected = gradients_of(stack, pass_logprobs(shards, stack, *texts()))
        logprobs = pass_logprobs(shards, stack, *texts())
        servers[1].stop()
        fresh = two_backends()[1]
        timer = threading.Timer(0.3, lambda: servers.__setitem__(1, serve_backend(fresh, [targets[1]])))
        timer.start()
        got = gradients_of(stack, logprobs)
        timer.join()
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    finally:
        for shard in shards:
            shard.shutdown()
        for server in servers:
            server.stop()


def test_a_shard_that_comes_back_as_another_model_is_refused(tmp_path) -> None:
    backends = two_backends()
    target = f"unix:{tmp_path}/right.sock"
    server = serve_backend(backends[1], [target])
    shard = remote("right", target)
    ids_T = torch.arange(4)
    try:
        assert shard.forward(SpanInputs(0, 1, (4,), ids_T)).result().hidden is not None
        server.stop()
        server = serve_backend(tiny_backend("right", 99, width=48, num_layers=4), [target])
        with pytest.raises(
            WeightMismatchError,
            match=r"shard 'right': .*got model \w+ instead of \w+, with which training began",
        ):
            shard.forward(SpanInputs(0, 1, (4,), ids_T)).result()
    finally:
        shard.shutdown()
        server.stop()


def test_a_shard_that_stays_away_is_named(tmp_path) -> None:
    backend = tiny_backend("gone", 1)
    target = f"unix:{tmp_path}/gone.sock"
    server = serve_backend(backend, [target])
    shard = remote("gone", target, patience_s=0.5)
    server.stop()
    with pytest.raises(UnavailableError, match="shard 'gone'"):
        shard.forward(SpanInputs(0, 1, (4,), torch.arange(4))).result()
    shard.shutdown()


def test_what_does_not_fit_into_a_message_is_refused_before_it_is_sent(tmp_path) -> None:
    backend = tiny_backend("small", 1)
    with serve_backend(backend, [f"unix:{tmp_path}/small.sock"]) as server:
        shard = remote("small", server.targets[0])
        shard._max_bytes = 2000
        with pytest.raises(FrameError, match=r"Forward takes \d+ bytes, expected at most 2000"):
            shard.forward(SpanInputs(1, 2, (64,), torch.zeros(64, dtype=torch.int64), torch.zeros(64, 32)))
        shard.shutdown()


def test_errors_of_the_shard_arrive_with_their_type_and_its_name(shards) -> None:
    head = HeadInputs(targets=torch.tensor([0, 1, 2, 262]))
    bad = SpanInputs(0, shards[0].card.num_layers, (4,), torch.arange(4), head=head)
    with pytest.raises(InvalidRequestError, match=r"targets: got values from 0 to 262, expected \[0, 262\)"):
        shards[0].forward(bad).result()


def test_a_shard_without_backward_says_so_in_its_card(tmp_path) -> None:
    config = ShardConfig("fixed", "fixed", training_share=0.0)
    backend = ShardBackend.from_model(tiny_llama(1), None, config)
    with training_shards([tiny_backend("ok", 2)], "grpc") as (shard,):
        assert shard.card.supports_backward
    with serve_backend(backend, [f"unix:{tmp_path}/f.sock"]) as server:
        from braid_rpc import ShardClient

        with ShardClient(server.targets[0]) as client:
            assert not client.describe().supports_backward
    with pytest.raises(UnsupportedModelError):
        backend.training.forward(SpanInputs(0, 1, (4,), torch.arange(4)))
