"""Metrics say what was done: a braid of tiny models is driven, and its figures are read by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from braids import braid_config, two_backends
from programs import eventually
from prometheus_client.parser import text_string_to_metric_families

from braid_orchestrator.assembly import assemble_local
from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions, ScoreRequest
from braid_orchestrator.serving.metrics import MeteredService
from braid_orchestrator.serving.point_watch import PointWatch
from braid_orchestrator.serving.service import BraidDescription, BraidService
from braid_rpc.errors import ContextLengthError, NoDeciderError, UnavailableError
from braid_rpc.fusion_client import PointMetrics

from ..fake_service import FakeService, shard_card

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(metered: MeteredService) -> Figures:
    families = text_string_to_metric_families(metered.render_metrics().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@pytest.fixture
def service() -> Iterator[BraidService]:
    service = assemble_local(braid_config(), two_backends())
    yield service
    service.stop()


async def ask(metered: MeteredService, request: GenerateRequest) -> None:
    async for _ in metered.generate(request):
        pass


async def test_every_step_span_and_exchange_is_counted(service: BraidService) -> None:
    metered = MeteredService(service)
    sampling = SamplingOptions(max_tokens=4, temperature=0.0, ignore_eos=True)
    await ask(metered, GenerateRequest("abcdefgh", sampling))
    eventually(lambda: service.stats().steps == 4, 10.0, "the step that gave the last token is counted")
    figures = read(metered)
    prompt = figures[key("braid_prompt_tokens_total")]
    assert prompt >= 8
    assert figures[key("braid_steps_total")] == 4  # the prompt's step gives the first token
    assert figures[key("braid_step_seconds_count")] == 4
    assert figures[key("braid_step_rows_sum")] == prompt + 3
    assert figures[key("braid_step_rows_bucket", le="1.0")] == 3
    assert figures[key("braid_step_sequences_sum")] == 4
    for shard in ("left", "right"):
        for span in ("0", "1", "2"):
            assert figures[key("braid_span_runs_total", shard=shard, span=span)] == 4
            seconds = figures[key("braid_span_seconds_total", shard=shard, span=span, part="compute")]
            assert 0 < seconds < figures[key("braid_step_seconds_sum")]
    for point in ("1", "2"):
        assert figures[key("braid_fusion_exchanges_total", point=point)] == 4
        assert figures[key("braid_fusion_seconds_total", point=point, part="compute")] > 0
        assert figures[key("braid_point_rows_total", point=point)] == prompt + 3
    assert figures[key("braid_readouts_total")] == 4
    assert key("braid_span_runs_total", shard="right", span="all") not in figures


async def test_a_shard_alone_is_counted_from_embedding_to_head(service: BraidService) -> None:
    metered = MeteredService(service)
    sampling = SamplingOptions(max_tokens=3, temperature=0.0, ignore_eos=True)
    await ask(metered, GenerateRequest("abc", sampling, use_braiding=False, shard="right"))
    figures = read(metered)
    assert figures[key("braid_span_runs_total", shard="right", span="all")] == 3
    assert not [name for name, labels in figures if name.startswith("braid_fusion_exchanges")]


async def test_latencies_and_tokens_are_those_of_the_requests(service: BraidService) -> None:
    metered = MeteredService(service)
    sampling = SamplingOptions(max_tokens=3, temperature=0.0, ignore_eos=True)
    await ask(metered, GenerateRequest("ab", sampling, n=2))
    await metered.score(ScoreRequest("abc"))
    figures = read(metered)
    assert figures[key("braid_completion_tokens_total")] == 6
    assert figures[key("braid_request_completion_tokens_sum")] == 6
    assert figures[key("braid_choices_finished_total", reason="length")] == 2
    assert figures[key("braid_time_to_first_token_seconds_count")] == 1
    assert figures[key("braid_request_queue_seconds_count")] == 1
    assert figures[key("braid_time_per_output_token_seconds_count")] == 4
    assert figures[key("braid_request_time_per_output_token_seconds_count")] == 2
    mean = figures[key("braid_request_time_per_output_token_seconds_sum")] / 2
    assert mean == pytest.approx(figures[key("braid_time_per_output_token_seconds_sum")] / 4)
    for operation in ("generate", "score"):
        assert figures[key("braid_request_seconds_count", operation=operation, outcome="finished")] == 1
    assert (
        figures[key("braid_time_to_first_token_seconds_sum")]
        <= figures[key("braid_request_seconds_sum", operation="generate", outcome="finished")]
    )


async def test_refusals_are_counted_by_their_type(service: BraidService) -> None:
    metered = MeteredService(service)
    with pytest.raises(ContextLengthError):
        await ask(metered, GenerateRequest("x" * 5000))
    outcome = key("braid_request_seconds_count", operation="generate", outcome="ContextLengthError")
    assert read(metered)[outcome] == 1


async def test_caches_are_full_to_the_part_that_is_taken(service: BraidService) -> None:
    metered = MeteredService(service)
    assert read(metered)[key("braid_kv_cache_usage_ratio", shard="left")] == 0.0
    sampling = SamplingOptions(max_tokens=20, temperature=0.0, ignore_eos=True)
    events = metered.generate(GenerateRequest("abc", sampling))
    await anext(events)
    figures = read(metered)
    for shard in ("left", "right"):
        free, total = (figures[key(f"braid_cache_{kind}_bytes", shard=shard)] for kind in ("free", "total"))
        usage = figures[key("braid_kv_cache_usage_ratio", shard=shard)]
        assert usage == pytest.approx(1 - free / total) and 0 < usage < 1
    await events.aclose()  # type: ignore[attr-defined]


class OddlyNamed(FakeService):
    """Names as a configuration might have them, were they not checked."""

    shard = 'le"ft\\\n}'

    def describe(self) -> BraidDescription:
        description = super().describe()
        return replace(
            description, shards=(shard_card(self.shard), shard_card("right")), weights_version='v"1\n'
        )

    def point_metrics(self) -> list[PointMetrics]:
        return [PointMetrics(self.shard, "mlp", 7, {f"gate/{self.shard}": 0.5})]


def test_labels_are_escaped() -> None:
    figures = read(MeteredService(OddlyNamed()))
    odd = OddlyNamed.shard
    assert figures[key("braid_point_gate", point=odd, shard=odd)] == 0.5
    assert figures[key("braid_weights_info", version='v"1\n')] == 1


def test_points_say_weights_entropy_gates_and_rows() -> None:
    service = FakeService()
    figures = read(MeteredService(service))
    assert figures[key("braid_point_weight", point="1", shard="left")] == 0.75
    assert figures[key("braid_point_gate", point="1", shard="right")] == 0.5
    assert figures[key("braid_point_entropy", point="1")] == 0.1
    assert figures[key("braid_point_rows_total", point="1")] == 7


def test_a_store_that_nobody_shares_has_no_state() -> None:
    service = FakeService()
    metered = MeteredService(service)
    assert read(metered)[key("braid_state_store_up")] == 1
    service.store_up = False
    assert read(metered)[key("braid_state_store_up")] == 0
    service.store_up = None
    assert key("braid_state_store_up") not in read(metered)


def test_fusion_modules_are_asked_seldom_and_may_be_away() -> None:
    asked: list[int] = []

    def ask() -> list[PointMetrics]:
        asked.append(1)
        if len(asked) == 2:
            raise UnavailableError("gone")
        return [PointMetrics("1", "mlp", len(asked), {})]

    seldom = PointWatch(ask, every_s=3600.0)
    assert [point.rows for point in (*seldom.read(), *seldom.read())] == [1, 1]
    assert len(asked) == 1
    often = PointWatch(ask, every_s=0.0)
    assert often.read() == ()
    assert [point.rows for point in often.read()] == [3]


async def test_who_answers_is_counted_once_per_request_with_what_said_so() -> None:
    fake = FakeService()
    fake.decider = lambda text: "right"
    metered = MeteredService(fake)
    for use_braiding in (None, None, "auto", False, True):
        request = GenerateRequest("x", use_braiding=use_braiding)
        await ask(metered, await metered.decide(request))
    figures = read(metered)
    counted = {
        ("pair", "default"): 2,
        ("right", "auto"): 1,
        ("left", "request"): 1,
        ("pair", "request"): 1,
    }
    for (who, said_by), count in counted.items():
        assert figures[key("braid_answerers_total", answered_by=who, said_by=said_by)] == count


async def test_a_shard_that_a_request_made_up_gets_no_figure_of_its_own() -> None:
    """Else whoever asks could fill the memory of the service and of whatever scrapes it."""
    metered = MeteredService(FakeService())
    for shard in ("poems", "plays"):
        await metered.decide(GenerateRequest("x", use_braiding=False, shard=shard))
    assert b"poems" not in metered.render_metrics()


@pytest.mark.parametrize("request_", [GenerateRequest("x", use_braiding="auto"), ScoreRequest("x", "auto")])
async def test_a_request_that_nobody_could_decide_is_counted_and_logged_as_refused(
    request_: GenerateRequest | ScoreRequest, caplog: pytest.LogCaptureFixture
) -> None:
    metered = MeteredService(FakeService())
    operation = "generate" if isinstance(request_, GenerateRequest) else "score"
    with caplog.at_level("INFO", logger="braid_orchestrator"), pytest.raises(NoDeciderError):
        await metered.decide(request_)
    (record,) = caplog.records
    assert (record.message, record.operation, record.model) == ("request refused", operation, "pair")  # type: ignore[attr-defined]
    figures = read(metered)
    labels = {"operation": operation, "outcome": "NoDeciderError"}
    assert figures[key("braid_request_seconds_count", **labels)] == 1
