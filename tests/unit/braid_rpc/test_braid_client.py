from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from braid_rpc.braid_client import BraidClient
from braid_rpc.completions import ChoiceFinished, Finished, Started, Timings, Token, TopLogprob
from braid_rpc.errors import (
    BraidError,
    DeadlineError,
    InvalidRequestError,
    ProtocolVersionError,
    QueueFullError,
    RequestCancelledError,
    UnavailableError,
)

from .fake_braid import BAD_REQUEST, QUEUE_FULL, FakeBraid
from .fakes import serving

LONG_S = 20.0


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., BraidClient]]:
    with ExitStack() as stack:

        def make(braid: FakeBraid, **options: Any) -> BraidClient:
            server = stack.enter_context(serving(braid, tmp_path))
            return stack.enter_context(BraidClient(server.targets[0], **{"timeout_s": LONG_S, **options}))

        yield make


def test_a_completion_has_text_tokens_weights_reason_and_timings(connect: Callable[..., BraidClient]) -> None:
    done = connect(FakeBraid()).generate("hi", max_tokens=4, logprobs=1, request_id="r1")
    assert (done.request_id, done.model, done.weights_version) == ("r1", "fake", "v1")
    assert done.text == "0.0 1.0 2.0 3.0 end"
    assert [token.token_id for token in done.tokens] == [0, 1, 2, 3]
    assert done.tokens[0].top_logprobs == (TopLogprob(0, "x", -1.0),)
    assert done.weights == {"a": 0.75, "b": 0.25}
    assert (done.finish_reason, done.prompt_tokens, done.completion_tokens) == ("length", 2, 4)
    assert done.timings == Timings(0.1, 0.2, 0.3)


def test_n_choices_are_kept_apart(connect: Callable[..., BraidClient]) -> None:
    done = connect(FakeBraid()).generate("hi", max_tokens=2, n=3)
    assert [choice.text for choice in done.choices] == [f"0.{i} 1.{i} end" for i in range(3)]


def test_events_come_in_order(connect: Callable[..., BraidClient]) -> None:
    with connect(FakeBraid()).stream([1, 2], max_tokens=2) as events:
        kinds = [type(event) for event in events]
    assert kinds == [Started, Token, Token, ChoiceFinished, Finished]


def test_what_is_asked_is_what_arrives(connect: Callable[..., BraidClient]) -> None:
    braid = FakeBraid()
    client = connect(braid, application="other", metadata={"x-key": "v"})
    client.generate(
        "hi",
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        logit_bias={3: -1.5},
        stop="\n",
        stop_token_ids=[7],
        seed=2**40,
        use_braiding=False,
        shard="b",
        model="fake",
        timeout_s=9.0,
    )
    (request,) = braid.requests
    sampling = request.sampling
    assert (request.text, request.shard, request.model, request.timeout_s) == ("hi", "b", "fake", 9.0)
    assert request.HasField("use_braiding") and not request.use_braiding
    assert sampling.HasField("temperature") and sampling.temperature == 0.0
    assert (sampling.max_tokens, sampling.top_p, sampling.seed) == (5, 0.5, 2**40)
    assert (dict(sampling.logit_bias), list(sampling.stop), list(sampling.stop_token_ids)) == (
        {3: -1.5},
        ["\n"],
        [7],
    )
    assert not sampling.HasField("min_p") and not sampling.HasField("logprobs")
    assert request.request_id
    assert braid.metadata[0]["application"] == "other" and braid.metadata[0]["x-key"] == "v"


@pytest.mark.parametrize(
    "options",
    [
        {"temprature": 1},
        {"max_tokens": -1},
        {"max_tokens": "many"},
        {"stop": 3},
        {"logit_bias": {"a": 1.0}},
        {"seed": 2**70},
        {"request_id": 5},
        {"use_braiding": "maybe"},
        {"use_braiding": 1},
    ],
)
def test_an_option_that_cannot_be_said_is_refused_by_name(
    connect: Callable[..., BraidClient], options: dict[str, Any]
) -> None:
    braid = FakeBraid()
    with pytest.raises(InvalidRequestError, match=rf"^{next(iter(options))}: got"):
        connect(braid).generate("hi", **options)
    assert braid.requests == []


@pytest.mark.parametrize("prompt", [[1, -1], ["a"], 5, None, "\ud800"])
def test_a_prompt_that_cannot_be_said_is_refused(connect: Callable[..., BraidClient], prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^prompt: "):
        connect(FakeBraid()).score(prompt)


def test_scores_descriptions_and_cancels(connect: Callable[..., BraidClient]) -> None:
    client = connect(FakeBraid())
    score = client.score("ab")
    assert (score.token_ids, score.tokens, score.logprobs, score.num_bytes) == (
        (1, 2),
        ("a", "b"),
        (0.0, -2.0),
        2,
    )
    assert score.total_logprob == -2.0
    card = client.describe()
    assert (card.name, card.anchor, card.shards[0].name, card.shards[0].tokenizer_hash) == (
        "fake",
        "a",
        "a",
        "t",
    )
    assert card.points[0].layers == (2,)
    assert client.cancel("known") and not client.cancel("other")


def test_another_protocol_version_is_refused_with_both_named(connect: Callable[..., BraidClient]) -> None:
    with pytest.raises(ProtocolVersionError, match="version 3, this client version 1"):
        connect(FakeBraid(protocol_version=3)).describe()


def test_what_nobody_answered_is_asked_again(connect: Callable[..., BraidClient]) -> None:
    for call in (lambda c: c.generate("hi"), lambda c: c.score("hi"), lambda c: c.describe()):
        braid = FakeBraid(failures=2)
        call(connect(braid))
        assert len(braid.requests) == 3


def test_every_attempt_has_an_id_of_its_own_unless_the_caller_gave_one(
    connect: Callable[..., BraidClient],
) -> None:
    braid = FakeBraid(failures=2)
    done = connect(braid).generate("hi")
    ids = [request.request_id for request in braid.requests]
    assert len(set(ids)) == 3 and done.request_id == ids[-1]
    braid = FakeBraid(failures=1)
    connect(braid).generate("hi", request_id="mine")
    assert [request.request_id for request in braid.requests] == ["mine", "mine"]


def test_retries_end(connect: Callable[..., BraidClient]) -> None:
    braid = FakeBraid(failures=9)
    with pytest.raises(UnavailableError, match="a shard is being restarted"):
        connect(braid, retries=1).generate("hi")
    assert len(braid.requests) == 2


def test_a_generation_that_has_begun_is_not_repeated(connect: Callable[..., BraidClient]) -> None:
    braid = FakeBraid(failures=1, fail_after=2)
    events = connect(braid).stream("hi")
    assert isinstance(next(events), Started) and isinstance(next(events), Token)
    with pytest.raises(UnavailableError):
        next(events)
    assert len(braid.requests) == 1


@pytest.mark.parametrize("error", [QUEUE_FULL, BAD_REQUEST, BraidError("broken")])
def test_other_errors_come_as_they_are_and_are_not_repeated(
    connect: Callable[..., BraidClient], error: BraidError
) -> None:
    for call in (lambda c: c.generate("hi"), lambda c: c.score("hi")):
        braid = FakeBraid(failures=1, error=error)
        with pytest.raises(BraidError) as caught:
            call(connect(braid))
        assert (type(caught.value), caught.value.message) == (type(error), error.message)
        assert caught.value.retry_after_s == error.retry_after_s
        assert len(braid.requests) == 1


def test_a_full_queue_says_when_to_come_back(connect: Callable[..., BraidClient]) -> None:
    with pytest.raises(QueueFullError) as caught:
        connect(FakeBraid(failures=1, error=QUEUE_FULL)).generate("hi")
    assert caught.value.retry_after_s == 3.0


def test_a_pause_longer_than_the_timeout_is_not_waited_out(connect: Callable[..., BraidClient]) -> None:
    braid = FakeBraid(failures=1, error=UnavailableError("later", retry_after_s=3600.0))
    with pytest.raises(UnavailableError, match="later"):
        connect(braid).generate("hi", timeout_s=LONG_S)
    assert len(braid.requests) == 1


@pytest.mark.parametrize("leave", ["break", "close", "drop"])
def test_leaving_a_stream_early_cancels_it_on_the_server(
    connect: Callable[..., BraidClient], leave: str
) -> None:
    braid = FakeBraid()
    braid.endless = True
    client = connect(braid)
    events = client.stream("hi")
    next(events)
    if leave == "break":
        with events:
            for _ in events:
                break
    elif leave == "close":
        events.close()
        events.close()
        with pytest.raises(RequestCancelledError):
            list(events)
    else:
        del events
        gc.collect()
    assert braid.cancelled.wait(LONG_S)


def test_a_timeout_is_a_deadline_and_cancels_on_the_server(connect: Callable[..., BraidClient]) -> None:
    braid = FakeBraid()
    braid.endless = True
    with pytest.raises(DeadlineError, match=r"got no answer within 0\.3 s|Deadline"):
        connect(braid).generate("hi", timeout_s=0.3)
    assert braid.cancelled.wait(LONG_S)


def test_nobody_there_is_unavailable_and_named(tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'nobody.sock'}"
    with BraidClient(target, retries=0) as client:
        for call in (client.describe, lambda: client.generate("hi"), lambda: client.score("hi")):
            with pytest.raises(UnavailableError, match="nobody"):
                call()


def test_one_client_serves_many_threads(connect: Callable[..., BraidClient]) -> None:
    client, texts = connect(FakeBraid()), []
    threads = [
        threading.Thread(target=lambda: texts.append(client.generate("hi", max_tokens=20).text))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(texts) == 6 and len(set(texts)) == 1
