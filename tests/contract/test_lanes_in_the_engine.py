"""What an engine does with shards of different tokenizers at the edges: full shards, lost parts, resumed requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from braids import Client, braid_config, running, shaken_weights
from models import reading_backend

from braid_fusion.weights import load_stack
from braid_orchestrator.assembly import assemble_remote, resolve_plan
from braid_orchestrator.config.values import BraidConfig, LimitsConfig, PointConfig, ReadoutConfig
from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions, TokenEvent
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

TOLERANCE = 1e-4
NAMES = ("anchor", "spiece", "words")
PROMPT = "Once upon a time, there was a größe 🙂 fox; they're friends, aren't"


def three_backends() -> list[ShardBackend]:
    return [
        reading_backend("anchor", "byte bpe", 0, context=512, width=32, num_layers=4),
        reading_backend("spiece", "llama", 1, context=512, width=32, num_layers=4),
        reading_backend("words", "words", 2, context=512, width=32, num_layers=4),
    ]


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return three_backends()


def configure(
    tmp: Path, backends: list[ShardBackend], points: list[PointConfig], **options: object
) -> BraidConfig:
    config = braid_config(points=points, names=NAMES, **options)  # type: ignore[arg-type]
    weights = shaken_weights(config, backends, tmp / "weights")
    return braid_config(points=points, names=NAMES, weights=weights, **options)  # type: ignore[arg-type]


POINTS = {
    "nothing crosses": [
        PointConfig(at=1, strategy="attention", options={"cross": False}),
        PointConfig(at=2, strategy="router", options={"cross": False}),
    ],
    "the anchor only gives": [
        PointConfig(at=1, strategy="attention", receivers=("spiece", "words")),
        PointConfig(at=2, strategy="mlp", receivers=("words",)),
    ],
    "replaced": [PointConfig(at=2, strategy="weighted", injection="replace")],
}


@pytest.mark.parametrize("kind", POINTS)
def test_token_by_token_is_the_whole_text_at_once(
    kind: str, backends: list[ShardBackend], tmp_path: Path
) -> None:
    config = configure(tmp_path, backends, POINTS[kind])
    with running(config, backends, "in process", tmp_path) as client:
        result = client.generate(PROMPT, max_tokens=16, seed=1, logprobs=0, ignore_eos=True)
        ids = [*client.engine.text.encode(PROMPT).token_ids, *result.token_ids]
    plan = resolve_plan(config, [backend.card for backend in backends])
    stack = load_stack(plan, Path(str(config.fusion.weights)) / "v3")
    with torch.inference_mode():
        whole = run_whole(backends, stack, torch.tensor(ids), [len(ids)]).scores.log_softmax(-1)
    for at, logprob in enumerate(result.logprobs, len(ids) - 16):
        assert float(whole[at - 1, ids[at]]) == pytest.approx(logprob, abs=TOLERANCE)


@pytest.mark.parametrize("num_chars", [62, 63, 64])
def test_a_prompt_that_fills_another_lane_is_run(num_chars: int, tmp_path: Path) -> None:
    backends = [
        reading_backend("lead", "llama", 0, context=512),
        reading_backend("bytes", "bytes", 1, context=64),
    ]
    config = braid_config(
        points=[PointConfig(at=1, strategy="mlp")], names=["lead", "bytes"], readout=ReadoutConfig("anchor")
    )
    with running(config, backends, "in process", tmp_path) as client:
        prompt = ("Once upon a time" * 4)[:num_chars]
        result = client.generate(prompt, max_tokens=200, temperature=0, ignore_eos=True)
        assert result.finish_reason == "length"
        assert result.token_ids


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, backends: list[ShardBackend]) -> BraidConfig:
    points = [PointConfig(at=1, strategy="attention"), PointConfig(at=2, strategy="mlp")]
    return configure(tmp_path_factory.mktemp("weights"), backends, points)


OPTIONS = {"seed": 5, "max_tokens": 30, "ignore_eos": True}


@pytest.mark.parametrize("told", [0, 1, 7, 29])
def test_a_request_carried_on_elsewhere_goes_on_in_all_lanes(
    told: int, config: BraidConfig, backends: list[ShardBackend], tmp_path: Path
) -> None:
    import queue

    request = GenerateRequest(PROMPT, SamplingOptions(**OPTIONS), request_id="r")  # type: ignore[arg-type]
    with running(config, backends, "in process", tmp_path) as client:
        events: queue.Queue = queue.Queue()
        client.engine.submit(request, events.put)
        seen = []
        while not seen or type(seen[-1]).__name__ != "Finished":
            seen.append(events.get(timeout=60))
        expected = [event.token_id for event in seen if isinstance(event, TokenEvent)]
    with running(config, three_backends(), "in process", tmp_path) as client:
        events = queue.Queue()
        client.engine.resume(request, seen[: 1 + told], events.put)
        assert client.results(events)[0].token_ids == expected


@pytest.mark.parametrize("name", NAMES)
def test_losing_a_part_changes_no_token(
    name: str, config: BraidConfig, backends: list[ShardBackend], tmp_path: Path
) -> None:
    with running(config, backends, "in process", tmp_path) as client:
        expected = client.generate(PROMPT, **OPTIONS).token_ids
    config = replace(config, limits=LimitsConfig(recovery_timeout_s=20.0))
    with TemporaryDirectory() as folder:
        servers = {b.card.name: serve_backend(b, [f"unix:{folder}/{b.card.name}"]) for b in three_backends()}
        targets = {shard: (lambda shard=shard: servers[shard].targets[0]) for shard in NAMES}
        service = assemble_remote(config, targets, None)
        try:
            client = Client(service._engine, service)
            events = client.submit(PROMPT, **OPTIONS)
            while not isinstance(event := events.get(timeout=60), TokenEvent):
                pass
            servers[name].stop(0)
            again = three_backends()[NAMES.index(name)]
            servers[name] = serve_backend(again, [f"unix:{folder}/{name}-2"])
            assert [event.token_id, *client.results(events)[0].token_ids] == expected
        finally:
            service.stop()
            for server in servers.values():
                server.stop(0)
