"""One span by itself is that part of the whole, forward and backward, in every family, wherever it is cut."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from families import FAMILIES, make_model
from models import byte_tokenizer, tiny_llama
from torch import Tensor

from braid_rpc.errors import (
    BraidError,
    ContextLengthError,
    FrameError,
    InvalidRequestError,
    RequestCancelledError,
    ShapeMismatchError,
    StepOrderError,
    UnsupportedModelError,
)
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.spans import SpanModel
from braid_services.shard.training.probing import why_not_backward
from braid_services.shard.turns import TrainingTurns

# Kernels for packed and for plain attention take sums in another order.
TOLERANCE = {"atol": 2e-5, "rtol": 2e-4}
LENGTHS = (7, 3, 5)


def plain(model: object, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The states that enter a layer, the logits, and their gradient to these states, by the model's own forward."""
    entering: list[Tensor] = []

    def enter(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        entering.append(hidden.detach().requires_grad_())
        return (
            ((entering[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entering[0]})
        )

    spans = SpanModel.of(model)
    handle = spans.layers[layer].register_forward_pre_hook(enter, with_kwargs=True)
    with spans.lock, spans.attention("eager"), torch.enable_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.square().sum(), entering)
    return entering[0].detach()[0], logits.detach(), gradient[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_alone_are_the_whole_cut_anywhere(family: str) -> None:
    model = make_model(family)
    backend = ShardBackend.from_model(model)
    assert backend.card.supports_backward
    last = backend.card.num_layers
    texts = [
        torch.randint(0, 67, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS
    ]
    ids_T = torch.cat(texts)
    expected = [[plain(model, ids, layer) for ids in texts] for layer in range(last)]
    logits_TV = torch.cat([logits for _, logits, _ in expected[0]])
    for first, second in [(0, 0), (0, last - 1), (1, 1), (1, 2), (2, 2)]:
        states = torch.cat([entering for entering, _, _ in expected[first]])
        middle = states
        if first < second:
            inputs = SpanInputs(first, second, LENGTHS, ids_T, states)
            middle = backend.training.forward(inputs, "first").outputs.hidden
            torch.testing.assert_close(
                middle, torch.cat([entering for entering, _, _ in expected[second]]), **TOLERANCE
            )
        inputs = SpanInputs(second, last, LENGTHS, ids_T, middle, HeadInputs(want_logits=True))
        outputs = backend.training.forward(inputs, "second").outputs
        torch.testing.assert_close(outputs.logits, logits_TV, **TOLERANCE)
        gradient = backend.training.backward("second", SpanOutputs(logits=2 * outputs.logits)).hidden
        if first < second:
            gradient = backend.training.backward("first", SpanOutputs(hidden=gradient)).hidden
        wanted = torch.cat([one for _, _, one in expected[first]])
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient / scale, wanted / scale, atol=2e-5, rtol=1e-3)


def test_the_embedding_is_a_span_of_no_layers() -> None:
    model = make_model("llama")
    backend = ShardBackend.from_model(model)
    ids_T = torch.arange(5)
    hidden = backend.training.forward(SpanInputs(0, 0, (5,), ids_T)).outputs.hidden
    assert torch.equal(hidden, model.get_input_embeddings()(ids_T))


@pytest.fixture(scope="module")
def backend() -> ShardBackend:
    config = ShardConfig(name="tiny", model="tiny")
    return ShardBackend.from_model(tiny_llama(1, context=32), byte_tokenizer(), config)


def whole(backend: ShardBackend, **changes: object) -> SpanInputs[Tensor]:
    card = backend.card
    values = {
        "start_layer": 1,
        "end_layer": card.num_layers,
        "lengths": (3, 2),
        "token_ids": torch.arange(5),
        "hidden": torch.randn(5, card.width, generator=torch.Generator().manual_seed(0)),
        "head": HeadInputs(want_logits=True),
    }
    return SpanInputs(**{**values, **changes})


def test_what_is_asked_of_the_head_follows_from_the_logits(backend: ShardBackend) -> None:
    logits = backend.training.forward(whole(backend)).outputs.logits
    head = HeadInputs(torch.tensor([4, 1]), torch.tensor([7, 90]), 100, want_features=True)
    outputs = backend.training.forward(whole(backend, head=head)).outputs
    log_p = logits[[4, 1], :100].log_softmax(-1)
    torch.testing.assert_close(outputs.target_logprobs, log_p[[0, 1], [7, 90]])
    entropy = -(log_p.exp() * log_p).sum(-1) / torch.tensor(100.0).log()
    torch.testing.assert_close(outputs.features[:, 0], entropy)
    assert outputs.logits is None and outputs.hidden.shape == (2, 32)


def test_nobody_can_change_what_another_sent(backend: ShardBackend) -> None:
    inputs = whole(backend)
    before = inputs.hidden.clone()
    backend.training.forward(inputs, "x")
    backend.training.backward("x", SpanOutputs(logits=torch.ones(5, backend.card.vocab_size)))
    assert torch.equal(inputs.hidden, before) and not inputs.hidden.requires_grad


def test_gradients_are_the_same_when_the_graph_is_gone(backend: ShardBackend) -> None:
    inputs = whole(backend)
    gradients = SpanOutputs(logits=torch.randn(5, backend.card.vocab_size))
    backend.training.forward(inputs, "kept")
    kept = backend.training.backward("kept", gradients).hidden
    assert backend.training.backward("kept", gradients).hidden is None
    assert torch.equal(backend.training.backward("kept", gradients, inputs).hidden, kept)
    assert torch.equal(backend.training.backward("never seen", gradients, inputs).hidden, kept)


def test_nothing_is_kept_for_a_caller_who_went_while_the_span_ran(backend: ShardBackend) -> None:
    ran: list[bool] = []

    def check_wanted() -> None:
        if ran:
            raise RequestCancelledError("gone")

    handle = backend.spans.layers[-1].register_forward_hook(lambda *_: ran.append(True))
    try:
        with pytest.raises(RequestCancelledError):
            backend.training.forward(whole(backend), "gone", check_wanted=check_wanted)
    finally:
        handle.remove()
    assert backend.training.graphs.take("gone") is None and not backend.spans.lock.locked()


def test_kept_graphs_stay_within_the_configured_bytes() -> None:
    model = tiny_llama(1)
    one = ShardBackend.from_model(model, byte_tokenizer(), ShardConfig("tiny", "tiny"))
    one.training.forward(whole(one), "a")
    size = one.training.graphs.num_bytes
    # At least the states of each layer, and less than everything there is.
    assert 2 * 5 * 32 * 4 < size < 2**20
    room = ShardConfig("tiny", "tiny", training_bytes=2 * size)
    backend = ShardBackend.from_model(model, byte_tokenizer(), room)
    for name in "abcde":
        backend.training.forward(whole(backend), name)
        assert backend.training.graphs.num_bytes <= 2 * size
    assert [backend.training.graphs.take(name) is None for name in "abcde"] == [
        True,
        True,
        True,
        False,
        False,
    ]


BAD: dict[str, tuple[dict[str, object], type[BraidError], str]] = {
    "a span backward": ({"start_layer": 3, "end_layer": 2, "head": None}, StepOrderError, "layers 3 to 2"),
    "layers that are not there": ({"end_layer": 9}, StepOrderError, "layers 1 to 9"),
    "the last layer without a head": ({"head": None}, StepOrderError, "without the head"),
    "a head in the middle": ({"end_layer": 2}, StepOrderError, "with the head"),
    "no states": ({"hidden": None}, StepOrderError, "no states"),
    "states of another width": ({"hidden": torch.zeros(5, 31)}, ShapeMismatchError, "31"),
    "states of too few rows": ({"hidden": torch.zeros(4, 32)}, ShapeMismatchError, "(4, 32)"),
    "states of another dtype": ({"hidden": torch.zeros(5, 32).double()}, FrameError, "float64"),
    "a token that is not there": ({"token_ids": torch.tensor([0, 1, 2, 3, 262])}, InvalidRequestError, "262"),
    "lengths that don't add up": ({"lengths": (3, 3)}, ShapeMismatchError, "token_ids"),
    "an empty sequence": ({"lengths": (5, 0)}, InvalidRequestError, "at least one row"),
    "too long": (
        {"lengths": (33,), "token_ids": torch.zeros(33, dtype=torch.int64), "hidden": torch.zeros(33, 32)},
        ContextLengthError,
        "33",
    ),
    "a label out of range": (
        {"head": HeadInputs(targets=torch.tensor([0, 1, 2, 3, 262]))},
        InvalidRequestError,
        "targets: got values from 0 to 262",
    ),
    "a label beyond the smaller vocabulary": (
        {"head": HeadInputs(targets=torch.tensor([0, 1, 2, 3, 50]), vocab_size=50)},
        InvalidRequestError,
        "expected [0, 50)",
    ),
    "a negative label": (
        {"head": HeadInputs(targets=torch.tensor([0, 1, 2, 3, -100]))},
        InvalidRequestError,
        "-100",
    ),
    "too few labels": ({"head": HeadInputs(targets=torch.tensor([0]))}, ShapeMismatchError, "targets"),
    "labels that are no integers": (
        {"head": HeadInputs(targets=torch.zeros(5))},
        ShapeMismatchError,
        "float32",
    ),
    "a row that is not there": (
        {"head": HeadInputs(logit_rows=torch.tensor([5]), want_logits=True)},
        InvalidRequestError,
        "logit_rows",
    ),
    "a larger vocabulary": ({"head": HeadInputs(vocab_size=263)}, InvalidRequestError, "263"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_and_leaves_nothing(backend: ShardBackend, what: str) -> None:
    changes, error, words = BAD[what]
    backend.training.graphs.clear()
    inputs = whole(backend, **changes)
    for call in (
        lambda: backend.training.forward(inputs, "bad"),
        lambda: backend.training.backward("bad", SpanOutputs(logits=torch.zeros(5, 262)), inputs),
    ):
        with pytest.raises(error) as raised:
            call()
        assert words in str(raised.value)
    assert len(backend.training.graphs) == 0 and not backend.spans.lock.locked()


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        (SpanOutputs(), "no gradients"),
        (SpanOutputs(features=torch.zeros(5, 3)), "features"),
        (SpanOutputs(logits=torch.zeros(5, 261)), "(5, 261)"),
    ],
)
def test_gradients_of_what_was_not_given_are_refused(backend, gradients, words: str) -> None:
    backend.training.forward(whole(backend), "x")
    with pytest.raises(InvalidRequestError) as raised:
        backend.training.backward("x", gradients)
    assert words in str(raised.value)


def test_too_much_for_one_message_is_refused_before_it_is_computed(backend: ShardBackend) -> None:
    with pytest.raises(
        FrameError, match=r"states and logits of 5 rows take 5880 bytes, expected at most 5000"
    ):
        backend.training.forward(whole(backend), max_result_bytes=5000)
    backend.training.forward(whole(backend), max_result_bytes=5880)
    head = HeadInputs(logit_rows=torch.tensor([0]), want_logits=True)
    with pytest.raises(FrameError, match="states of 5 rows take 640 bytes"):
        backend.training.forward(whole(backend, head=head), max_result_bytes=600)


def test_a_shard_may_refuse_training() -> None:
    config = ShardConfig("tiny", "tiny", training_share=0.0)
    backend = ShardBackend.from_model(tiny_llama(1), byte_tokenizer(), config)
    assert not backend.card.supports_backward
    with pytest.raises(UnsupportedModelError, match=r"shard 'tiny'.*training_share is 0"):
        backend.training.forward(whole(backend))


def test_shards_of_one_model_share_the_time_for_training() -> None:
    model = tiny_llama(1)
    one, other = (
        ShardBackend.from_model(model, byte_tokenizer(), ShardConfig(name, name, training_share=0.1))
        for name in ("one", "other")
    )
    ticks, naps = count(), []
    one.spans.training_turns = TrainingTurns(
        one.spans.lock, clock=lambda: next(ticks) / 10, sleep=naps.append
    )
    with one.spans.lock.serving():  # somebody is served
        pass
    one.training.forward(whole(one))
    assert not naps
    other.training.forward(whole(other))
    assert naps, "it had a turn in the rest that the other one's left"


def test_a_shard_without_backward_can_still_give(backend: ShardBackend, monkeypatch) -> None:
    monkeypatch.setattr(backend.training, "no_backward", "it is quantized")
    assert backend.training.forward(whole(backend)).outputs.logits is not None
    with pytest.raises(UnsupportedModelError, match="it is quantized"):
        backend.training.forward(whole(backend), "x")


def test_a_model_with_wrong_gradients_is_found_out_when_it_is_loaded(monkeypatch) -> None:
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 1.01 * gradient

    model = make_model("llama")
    spans = SpanModel.of(model)
    assert why_not_backward(spans) == ""
    from braid_services.shard.training import probing

    honest = probing.run_span
    monkeypatch.setattr(
        probing,
        "run_span",
        lambda spans, inputs, hidden: honest(spans, inputs, Straight.apply(hidden)),
    )
    assert "differ from the plain forward's" in why_not_backward(spans)
    monkeypatch.setattr(probing, "run_span", lambda spans, inputs, hidden: SpanOutputs())
    assert "its backward fails" in why_not_backward(spans)
