"""Who answers is decided per request: by what it says, by default or by a predicate, over every way in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import braid_config, running, shaken_weights, two_backends
from models import reading_backend
from served import LIMITS, Served, chatting_backends, served
from typer.testing import CliRunner

from braid_fusion.deciding import register_predicate
from braid_orchestrator.cli.main import app
from braid_orchestrator.config.values import BraidConfig, BraidingConfig, PointConfig
from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions, TokenEvent
from braid_orchestrator.serving.service import BraidService
from braid_rpc import AsyncBraidClient, BraidClient
from braid_rpc.errors import BraidError, ConfigError, NoDeciderError
from braid_services.shard.backend import ShardBackend

GREEDY = SamplingOptions(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPTS = {"a long text without any sign": True, "x = 1": "right", "short": False}


@register_predicate("test: by its signs")
def by_its_signs(text: str) -> bool | str:
    if text == "nonsense":
        return "middle"
    return "right" if "=" in text else len(text) > 10


def configured(folder: Path, backends: list[ShardBackend], **braiding: object) -> BraidConfig:
    config = braid_config(limits=LIMITS)
    weights = shaken_weights(config, backends, folder)
    braiding = {"decide": "test: by its signs", **braiding}
    return replace(braid_config(limits=LIMITS, weights=weights), braiding=BraidingConfig(**braiding))  # type: ignore[arg-type]


async def tokens_of(service: BraidService, request: GenerateRequest) -> list[int]:
    return [event.token_id async for event in service.generate(request) if isinstance(event, TokenEvent)]


@pytest.mark.parametrize("transport", ["in process", "grpc, fusion service"])
def test_what_is_decided_answers_as_if_it_had_been_asked_for(tmp_path: Path, transport: str) -> None:
    """One after the other and all at once, braided and alone side by side in the same batches."""
    backends = two_backends()
    config = configured(tmp_path, backends)
    with TemporaryDirectory() as sockets, running(config, backends, transport, Path(sockets)) as client:

        async def ask(prompt: str, use_braiding: object, shard: str | None = None) -> list[int]:
            request = GenerateRequest(prompt, GREEDY, use_braiding=use_braiding, shard=shard)  # type: ignore[arg-type]
            return await tokens_of(client.service, request)

        async def all_at_once() -> list[list[int]]:
            return list(await asyncio.gather(*(ask(prompt, "auto") for prompt in PROMPTS)))

        expected = []
        for prompt, answerer in PROMPTS.items():
            shard = answerer if isinstance(answerer, str) else None
            expected.append(asyncio.run(ask(prompt, answerer is True, shard)))
            assert asyncio.run(ask(prompt, "auto")) == expected[-1]
        assert asyncio.run(all_at_once()) == expected
    # A shard alone is what it is without a braid.
    for index, shard in ((1, 1), (2, 0)):
        alone = replace(braid_config(points=(), names=("left", "right")), anchor=("left", "right")[shard])
        with running(alone, two_backends(), "in process", tmp_path) as client:
            request = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "use_braiding": False}
            assert client.generate(list(PROMPTS)[index], **request).token_ids == expected[index]


@pytest.fixture(scope="module")
def braid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    backends = chatting_backends()
    config = configured(tmp_path_factory.mktemp("weights"), backends, default="auto")
    with served(backends, config) as braid:
        yield braid


@pytest.mark.parametrize(("prompt", "answerer"), PROMPTS.items(), ids=str)
def test_every_way_in_tells_who_answered(braid: Served, prompt: str, answerer: bool | str) -> None:
    who = answerer if isinstance(answerer, str) else "tiny" if answerer else "left"
    told = {"braided": answerer is True, "answered_by": who}
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    with braid.http() as http, BraidClient(braid.grpc_target) as grpc:
        for said in ({}, {"use_braiding": "auto"}):  # the default is the same here
            answer = http.post("/generate", json=body | said).json()
            assert {key: answer[key] for key in told} == told
            assert answer["model"] == who
            score = http.post("/score", json={"prompt": prompt} | said).json()
            assert {key: score[key] for key in told} == told
            completion = http.post("/v1/completions", json=body | said).json()
            assert completion["choices"][0]["text"] == answer["text"]
            assert completion["model"] == who
            assert completion.get("answered_by") == ([who] if said else None)
            options = {key: value for key, value in body.items() if key != "prompt"} | said
            by_grpc = grpc.generate(prompt, **options)
            assert (by_grpc.text, by_grpc.model) == (answer["text"], who)
            assert (by_grpc.braided, by_grpc.answered_by) == (told["braided"], who)
            assert grpc.score(prompt, **said).answered_by == who
        streamed = http.post("/generate", json=body | {"stream": True}).text.split("\n")
        assert f'"braided":{str(told["braided"]).lower()},"answered_by":"{who}"' in streamed[1]
        parts = http.post("/v1/completions", json=body | {"stream": True, "use_braiding": "auto"}).text
        assert f'"answered_by":["{who}"]' in parts.split("\n\n")[-3]
        for said, expected in ((True, "tiny"), (False, "left")):
            answer = http.post("/generate", json=body | {"use_braiding": said}).json()
            assert (answer["braided"], answer["answered_by"]) == (said, expected)


def test_several_prompts_are_decided_one_by_one(braid: Served) -> None:
    body = {"prompt": list(PROMPTS), "max_tokens": 2, "use_braiding": "auto", "echo": True, "logprobs": 0}
    with braid.http() as http:
        answer = http.post("/v1/completions", json=body).json()
    assert answer["answered_by"] == ["tiny", "right", "left"]
    assert answer["braided"] == [True, False, False]
    assert answer["model"] == "tiny"


def test_a_conversation_is_decided_by_what_was_said(braid: Served) -> None:
    body = {"messages": [{"role": "user", "content": "short"}], "max_tokens": 2}
    with braid.http() as http:
        quiet = http.post("/v1/chat/completions", json=body).json()
        assert quiet["model"] == "left" and "answered_by" not in quiet
        told = http.post("/v1/chat/completions", json=body | {"use_braiding": True}).json()
        assert (told["model"], told["braided"], told["answered_by"]) == ("tiny", True, "tiny")
        # Only the anchor has a chat template here, and whoever answers writes with its own.
        body["messages"][0]["content"] = "x = 1"  # type: ignore[index]
        refused = http.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400 and "shard 'right' has no chat template" in refused.text


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_the_command_line_asks_for_it_and_tells(braid: Served, by: str) -> None:
    target = braid.url if by == "http" else braid.grpc_target
    for said, who in (
        (["--use-braiding", "auto"], "right"),
        (["--use-braiding", "false"], "left"),
        ([], "right"),
    ):
        command = ["generate", "x = 1", "--target", target, "-n", "3", "--temperature", "0", *said]
        plain = CliRunner().invoke(app, command)
        assert plain.exit_code == 0 and f"{who}'s weights" in plain.stderr
        told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
        assert (told["answered_by"], told["braided"]) == (who, False)
        assert told["text"] + "\n" == plain.stdout


async def test_the_asynchronous_client_asks_for_it_too(braid: Served) -> None:
    async with AsyncBraidClient(braid.grpc_target) as client:
        done = await client.generate("x = 1", max_tokens=2, use_braiding="auto")
        score = await client.score("x = 1", use_braiding="auto")
    assert (done.braided, done.answered_by, score.braided, score.answered_by) == (False, "right") * 2


def test_an_answer_that_is_none_is_an_error(braid: Served) -> None:
    with (
        BraidClient(braid.grpc_target) as grpc,
        pytest.raises(BraidError, match="'middle', expected true, f"),
    ):
        grpc.generate("nonsense", use_braiding="auto")


def test_auto_without_a_decider_is_refused(tmp_path: Path) -> None:
    with served() as braid, braid.http() as http, BraidClient(braid.grpc_target) as grpc:
        for route in ("/generate", "/score", "/v1/completions"):
            answer = http.post(route, json={"prompt": "x", "use_braiding": "auto"})
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "NoDeciderError"
            assert "braiding.decide" in answer.json()["error"]["message"]
        with pytest.raises(NoDeciderError, match="nothing is configured"):
            grpc.generate("x", use_braiding="auto")
        body = {"messages": [{"role": "user", "content": "x"}], "use_braiding": "auto"}
        assert http.post("/v1/chat/completions", json=body).json()["error"]["type"] == "NoDeciderError"
        for wrong in ("yes", 1, {}):
            answer = http.post("/generate", json={"prompt": "x", "use_braiding": wrong})
            assert answer.status_code == 400 and "use_braiding" in answer.text
        answer = http.post("/generate", json={"prompt": "x", "use_braiding": "auto", "model": "right"})
        assert answer.status_code == 400 and "got 'auto' for the shard 'right'" in answer.text


def test_token_ids_are_the_anchors_so_no_other_tokenizer_gets_them(tmp_path: Path) -> None:
    backends = [
        reading_backend("left", "byte bpe", 1, context=256),
        reading_backend("right", "words", 2, context=256),
    ]
    config = replace(
        braid_config(points=[PointConfig(at=1, strategy="mlp")]),
        braiding=BraidingConfig(decide="test: by its signs"),
    )
    with running(config, backends, "in process", tmp_path) as client:
        ids = client.engine.text.encode("x = 1").token_ids

        def decided(request: GenerateRequest) -> tuple[object, str | None]:
            settled = asyncio.run(client.service.decide(replace(request, use_braiding="auto")))
            return settled.use_braiding, settled.shard

        assert decided(GenerateRequest("x = 1", GREEDY)) == (False, "right")
        assert decided(GenerateRequest(ids, GREEDY)) == (True, None)
        assert decided(GenerateRequest(client.engine.text.encode("short").token_ids, GREEDY)) == (False, None)
        assert decided(GenerateRequest((*ids, 10**6), GREEDY)) == (True, None)  # refused later, by name
        biased = replace(GREEDY, logit_bias={3: 1.0})
        assert decided(GenerateRequest("x = 1", biased)) == (True, None)
        ended = replace(GREEDY, stop_token_ids=(3,))
        assert decided(GenerateRequest("x = 1", ended)) == (True, None)


def test_what_decides_has_to_be_there(tmp_path: Path) -> None:
    for decide, says in (
        ("wise", "got 'wise', expected one of: .*by its signs"),
        ("./no", "card.json in no"),
    ):
        config = replace(braid_config(), braiding=BraidingConfig(decide=decide))
        with (
            pytest.raises(ConfigError, match=rf"braiding\.decide: .*{says}"),
            running(config, two_backends(), "in process", tmp_path),
        ):
            pass
    config = replace(braid_config(), braiding=BraidingConfig(imports=("no_such_module",)))
    with (
        pytest.raises(ConfigError, match=r"braiding\.imports: got 'no_such_module'"),
        running(config, two_backends(), "in process", tmp_path),
    ):
        pass
