"""What is told of how stable a text is, and what follows from it, is the same over every transport."""

from __future__ import annotations

import queue
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from braids import (
    TRANSPORTS,
    Client,
    Result,
    braid_config,
    oracle_log_probs,
    running,
    shake,
    shaken_weights,
    two_backends,
)
from models import reading_backend
from telling import POINTS
from torch import Tensor

from braid_fusion import LyapunovMonitor
from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, LimitsConfig, PointConfig
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    GenerateRequest,
    SamplingOptions,
    TokenEvent,
)
from braid_rpc.errors import BraidError, InvalidRequestError
from braid_rpc.stability import StabilityOptions, TokenStability
from braid_services.shard.backend import ShardBackend

# Two orders of summation of the same float32 numbers.
TOLERANCE = 1e-4
PROMPT = "the other thing in there"
SAMPLED = {"seed": 11, "max_tokens": 24, "ignore_eos": True, "temperature": 0.9}
TOLD = StabilityOptions()
LIMITS = LimitsConfig(max_running=8, max_batch_tokens=32, prefill_chunk=16)


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rise counts, so that texts of tiny models become unstable within a few tokens."""
    monkeypatch.setattr(LyapunovMonitor, "lower_bound", lambda self, _: self.estimate or 0.0)


def told_of(result: Result) -> list[TokenStability]:
    assert None not in result.stability
    return [told for told in result.stability if told is not None]


def same(got: Sequence[TokenStability], expected: Sequence[TokenStability]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one.lyapunov_estimate is None) == (other.lyapunov_estimate is None)
        for name in ("entropy", "lyapunov_estimate", "temperature", "coherence", "kuramoto_order"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=TOLERANCE), name


def test_figures_are_those_of_the_whole_text_by_hand(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    prompt = client.engine.text.encode(PROMPT).token_ids
    result = client.generate(PROMPT, stability=TOLD, **SAMPLED)
    plan = resolve_plan(config, [backend.card for backend in backends])
    stack = FusionStack(plan)
    shake(stack, 3)
    rows: list[dict[str, Tensor]] = []
    fuse = stack.fuse
    stack.fuse = lambda *args: rows.append((output := fuse(*args)).row_metrics) or output  # type: ignore[method-assign,assignment]
    log_probs_TV = oracle_log_probs(plan, stack, backends, (*prompt, *result.token_ids))
    ends = slice(len(prompt) - 1, -1)
    entropies = -(log_probs_TV.exp() * log_probs_TV).sum(-1)[ends]
    coherences = torch.stack([told["gate_coherence"] for told in rows]).mean(0)[ends]
    told = told_of(result)
    assert [one.entropy for one in told] == pytest.approx(entropies.tolist(), abs=TOLERANCE)
    assert [one.coherence for one in told] == pytest.approx(coherences.tolist(), abs=TOLERANCE)
    orders = rows[1]["kuramoto_order"][ends].tolist()
    assert [one.kuramoto_order for one in told] == pytest.approx(orders, abs=TOLERANCE)
    assert {one.temperature for one in told} == {0.9}
    monitor = LyapunovMonitor()
    estimates = [monitor.observe(entropy) for entropy in entropies.tolist()]
    assert estimates[0] is told[0].lyapunov_estimate is None
    assert [one.lyapunov_estimate for one in told[1:]] == pytest.approx(estimates[1:], abs=TOLERANCE)
    assert result.summary is not None and result.summary.is_stable
    assert result.summary.mean_coherence == pytest.approx(float(coherences.mean()), abs=TOLERANCE)
    assert result.summary.mean_entropy == pytest.approx(float(entropies.mean()), abs=TOLERANCE)
    assert result.summary.lyapunov_estimate == told[-1].lyapunov_estimate


def test_being_told_changes_no_token_and_who_does_not_ask_is_told_nothing(client: Client) -> None:
    plain = client.generate(PROMPT, **SAMPLED)
    assert plain.stability == [None] * 24 and plain.summary is None
    assert client.generate(PROMPT, stability=TOLD, **SAMPLED).token_ids == plain.token_ids


def test_points_are_asked_for_metrics_only_where_somebody_wants_them(client: Client) -> None:
    asked: list[int] = []
    fusion = client.engine._fusion
    fuse = fusion.fuse
    fusion.fuse = lambda *args: asked.append(len(args[-1])) or fuse(*args)  # type: ignore[method-assign,assignment]
    try:
        client.generate(PROMPT, **SAMPLED)
        assert asked and not any(asked)
        asked.clear()
        client.generate(PROMPT, stability=TOLD, **SAMPLED)
    finally:
        fusion.fuse = fuse  # type: ignore[method-assign]
    assert asked == [*[0] * (len(asked) - 48), *[1] * 48], "one row per token and point, none of the prompt's"


def test_each_choice_of_a_mixed_batch_is_told_of_itself(client: Client) -> None:
    options = {**SAMPLED, "stability": TOLD}
    alone = [client.generate(prompt, **options) for prompt in (PROMPT, "another")]
    several = client.results(client.submit("the one", n=3, **options))
    unwatched = client.submit(
        "an unwatched text that is longer than the others", **{**SAMPLED, "max_tokens": 40}
    )
    watched = [client.submit(prompt, **options) for prompt in (PROMPT, "another")]
    choices = client.submit("the one", n=3, **options)
    for events, expected in zip(watched, alone, strict=True):
        same(told_of(client.results(events)[0]), told_of(expected))
    for got, expected in zip(client.results(choices), several, strict=True):
        same(told_of(got), told_of(expected))
    assert client.results(unwatched)[0].summary is None
    assert len({told_of(one)[-1].entropy for one in several}) == 3


def test_a_shard_alone_tells_of_entropy_only(client: Client) -> None:
    result = client.generate(PROMPT, use_braiding=False, shard="right", stability=TOLD, **SAMPLED)
    assert all(told.entropy > 0 and told.coherence is told.kuramoto_order is None for told in told_of(result))
    assert result.summary is not None and result.summary.mean_coherence is None


@pytest.mark.usefixtures("certain")
def test_a_text_that_diverges_ends_there(client: Client) -> None:
    options = StabilityOptions(threshold=0.0, window=8, min_tokens=6)
    whole = client.generate(PROMPT, stability=options, **SAMPLED)
    end = next(
        n for n, told in enumerate(told_of(whole), 1) if n >= 6 and (told.lyapunov_estimate or 0.0) > 0
    )
    assert end < 24 and whole.finish_reason == "length", "a text is ended only where that was asked for"
    assert whole.summary is not None and not whole.summary.is_stable
    stopped = client.generate(PROMPT, stability=replace(options, stop=True), **SAMPLED)
    assert stopped.token_ids == whole.token_ids[:end] and whole.text.startswith(stopped.text)
    assert (stopped.finish_reason, stopped.stop_reason) == ("instability", None)
    assert stopped.summary is not None and not stopped.summary.is_stable
    later = client.generate(PROMPT, stability=replace(options, stop=True), min_tokens=end + 2, **SAMPLED)
    assert len(later.token_ids) == end + 2 and later.finish_reason == "instability"


@pytest.mark.usefixtures("certain")
def test_the_temperature_follows_within_its_bounds_and_repeats(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    options = StabilityOptions(auto_temperature=True, threshold=0.02, window=8, min_tokens=4)
    asked = {**SAMPLED, "max_tokens": 48, "stability": options}
    result = client.generate(PROMPT, **asked)
    temperatures = [told.temperature for told in told_of(result)]
    assert min(temperatures) < 0.8 and all(0.45 <= one <= 0.9 for one in temperatures)
    assert result.token_ids != client.generate(PROMPT, **{**asked, "stability": TOLD}).token_ids
    with running(config, backends, "in process", Path()) as local:
        expected = local.generate(PROMPT, **asked)
    assert result.token_ids == expected.token_ids
    same(told_of(result), told_of(expected))
    greedy = client.generate(PROMPT, **{**asked, "temperature": 0.0})
    assert {told.temperature for told in told_of(greedy)} == {0.0}


@pytest.mark.usefixtures("certain")
def test_a_sequence_that_gives_way_goes_on_with_its_estimate(tmp_path: Path) -> None:
    options = StabilityOptions(auto_temperature=True, window=8, min_tokens=4)
    asked = {**SAMPLED, "max_tokens": 100, "stability": options}
    prompts = ("the one", "another", "a third")

    def generate(cache_bytes: int) -> tuple[list[Result], int]:
        backends = two_backends(cache_bytes=cache_bytes)
        config = braid_config(points=POINTS)
        config = replace(config, fusion=replace(config.fusion, weights=str(weights)))
        with running(config, backends, "in process", tmp_path) as client:
            results = [client.submit(prompt, **asked) for prompt in prompts]
            return [client.results(events)[0] for events in results], client.engine.stats().preemptions

    weights = shaken_weights(braid_config(points=POINTS), two_backends(), tmp_path)
    roomy, none = generate(2**22)
    tight, some = generate(2**17)
    assert none == 0 and some > 0
    assert len({told.temperature for told in told_of(roomy[0])}) > 2
    for got, expected in zip(tight, roomy, strict=True):
        assert got.token_ids == expected.token_ids
        same(told_of(got), told_of(expected))


@pytest.mark.usefixtures("certain")
@pytest.mark.parametrize("cut", [1, 7, 1000], ids=["soon", "later", "at its last token"])
def test_what_was_begun_elsewhere_goes_on_with_its_estimate(
    cut: int, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    options = StabilityOptions(stop=True, auto_temperature=True, threshold=0.02, window=8, min_tokens=10)
    sampling = SamplingOptions(seed=3, max_tokens=60, temperature=0.9, ignore_eos=True)
    request = GenerateRequest(PROMPT, sampling, request_id="mine", stability=options)

    def events_of(events: queue.Queue[Event | BraidError]) -> list[Event]:
        found: list[Event] = []
        while not found or not isinstance(found[-1], Finished):
            item = events.get(timeout=60)
            assert not isinstance(item, BraidError)
            found.append(item)
        return found

    def told(events: list[Event]) -> list[TokenStability | None]:
        return [event.stability for event in events if isinstance(event, TokenEvent)]

    first: queue.Queue[Event | BraidError] = queue.Queue()
    with running(config, backends, "in process", Path()) as client:
        client.engine.submit(request, first.put)
        whole = events_of(first)
    again: queue.Queue[Event | BraidError] = queue.Queue()
    with running(config, backends, "in process", Path()) as elsewhere:
        elsewhere.engine.resume(request, whole[: 1 + min(cut, len(told(whole)))], again.put)
        resumed = events_of(again)
    assert [e.token_id for e in resumed if isinstance(e, TokenEvent)] == [
        e.token_id for e in whole if isinstance(e, TokenEvent)
    ]
    same(told(resumed), told(whole))  # type: ignore[arg-type]
    assert 10 <= len(told(whole)) < 60
    ends = [next(e for e in events if isinstance(e, ChoiceFinished)) for events in (whole, resumed)]
    assert ends[0].finish_reason == ends[1].finish_reason == "instability"
    assert ends[0].stability is not None and ends[1].stability is not None
    assert ends[1].stability.mean_entropy == pytest.approx(ends[0].stability.mean_entropy, abs=TOLERANCE)


@pytest.mark.parametrize("transport", ["in process", "grpc, fusion service"])
def test_sessions_of_two_versions_in_one_batch_are_told_of_their_own(
    transport: str, backends: list[ShardBackend], tmp_path: Path
) -> None:
    weights = shaken_weights(braid_config(points=POINTS), backends, tmp_path, seed=3)
    shaken_weights(braid_config(points=POINTS), backends, tmp_path, seed=4)
    config = braid_config(points=POINTS, limits=LIMITS, weights=weights)
    asked = {**SAMPLED, "max_tokens": 40, "stability": TOLD}
    with running(config, backends, transport, tmp_path) as client:
        alone = []
        for version in ("v3", "v4"):
            client.engine.activate(version)
            alone.append(client.generate(PROMPT, **asked))
        both = [client.submit(PROMPT, **asked)]
        assert not isinstance(both[0].get(timeout=60), BraidError)  # it has started, on v4
        client.engine.activate("v3")
        both.append(client.submit(PROMPT, **asked))
        results = [client.results(events)[0] for events in both]
    same(told_of(results[0]), told_of(alone[1]))
    same(told_of(results[1]), told_of(alone[0]))
    assert (
        statistics.mean(
            abs((one.coherence or 0) - (other.coherence or 0))
            for one, other in zip(told_of(alone[0]), told_of(alone[1]), strict=True)
        )
        > 10 * TOLERANCE
    )


@pytest.mark.parametrize("transport", ["in process", "grpc, fusion service"])
def test_the_anchors_rows_are_told_of_where_shards_read_differently(transport: str, tmp_path: Path) -> None:
    backends = [
        reading_backend("anchor", "byte bpe", 0, width=32, num_layers=4),
        reading_backend("spiece", "llama", 1, width=32, num_layers=4),
    ]
    config = braid_config(points=POINTS, names=("anchor", "spiece"), limits=LIMITS)
    config = braid_config(
        points=POINTS,
        names=("anchor", "spiece"),
        limits=LIMITS,
        weights=shaken_weights(config, backends, tmp_path),
    )
    with running(config, backends, transport, tmp_path) as client:
        asked = {**SAMPLED, "stability": TOLD}
        alone = [client.generate(prompt, **asked) for prompt in (PROMPT, "a größe 🙂 fox")]
        both = [client.submit(prompt, **asked) for prompt in (PROMPT, "a größe 🙂 fox")]
        for events, expected in zip(both, alone, strict=True):
            same(told_of(client.results(events)[0]), told_of(expected))
        assert all(told.coherence is not None for told in told_of(alone[1]))
        # The prompt and what was made of it, read at once: the last row's figures are the same.
        ids = [*client.engine.text.encode(PROMPT).token_ids, *alone[0].token_ids]
        whole = client.generate(tuple(ids[:-1]), **{**asked, "max_tokens": 1})
        for name in ("entropy", "coherence", "kuramoto_order"):
            got = getattr(told_of(whole)[0], name)
            assert got == pytest.approx(getattr(told_of(alone[0])[-1], name), abs=TOLERANCE)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_resonance_layers_between_shards_tell_of_coherence_and_order(
    transport: str, num_shards: int, tmp_path: Path
) -> None:
    backends = two_backends()[:num_shards]
    names = ("left", "right")[:num_shards]
    points = (PointConfig(at=1, strategy="resonance"), PointConfig(at=2, strategy="mlp"))
    bare = braid_config(points=points, names=names, limits=LIMITS)
    weights = shaken_weights(bare, backends, tmp_path)
    config = braid_config(points=points, names=names, limits=LIMITS, weights=weights)
    with TemporaryDirectory() as sockets, running(config, backends, transport, Path(sockets)) as client:
        plain = client.generate(PROMPT, **SAMPLED)
        told = client.generate(PROMPT, stability=TOLD, **SAMPLED)
        ids = [*client.engine.text.encode(PROMPT).token_ids, *told.token_ids]
        at_once = client.generate(tuple(ids[:-1]), **{**SAMPLED, "max_tokens": 1}, stability=TOLD)
    assert told.token_ids == plain.token_ids
    assert all(0 < (one.coherence or 0) < 1 and 0 < (one.kuramoto_order or 0) <= 1 for one in told_of(told))
    assert len({one.coherence for one in told_of(told)}) > 12
    for name in ("entropy", "coherence", "kuramoto_order"):
        got = getattr(told_of(at_once)[0], name)
        assert got == pytest.approx(getattr(told_of(told)[-1], name), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (StabilityOptions(window=8.5), r"stability\.window: got 8\.5"),  # type: ignore[arg-type]
        (StabilityOptions(threshold=-0.1), r"stability\.threshold: got -0\.1"),
        (StabilityOptions(threshold=float("nan")), r"stability\.threshold: got nan"),
        (StabilityOptions(window=3), r"stability\.window: got 3, expected between 4 and 128"),
        (StabilityOptions(window=1000), r"stability\.window: got 1000"),
        (StabilityOptions(min_tokens=0), r"stability\.min_tokens: got 0, expected at least 4"),
    ],
)
def test_options_out_of_range_are_refused(client: Client, options: StabilityOptions, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        client.submit("the", stability=options)
