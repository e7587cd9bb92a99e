"""`braid serve`: two shards and the fusion modules in processes of their own, asked as users ask."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from braids import local_tokens
from programs import Program, eventually, tiny_braid_settings, write_serve_file
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app
from braid_rpc import BraidClient
from braid_rpc.errors import ContextLengthError, UnknownModelError

PROMPT = "the inner thread"
READY_S, STOP_S = 240.0, 30.0
SAMPLED = {"max_tokens": 24, "temperature": 0.9, "seed": 11, "ignore_eos": True}


@dataclass
class Service:
    program: Program
    config: Path
    url: str
    grpc_target: str


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("plain")
    config = write_serve_file(folder / "braid.yaml", tiny_braid_settings(folder), 0, 0)
    program = Program(
        [sys.executable, "-m", "braid_orchestrator.cli", "serve", "--config", str(config)], folder / "log"
    )
    try:
        program.wait_until(lambda: "is ready" in program.output(), READY_S, "braid serve is ready")
        found = re.search(r"is ready: (\S+) .* gRPC at (\S+)", program.output())
        assert found is not None
        yield Service(program, config, found[1], found[2])
        # The last test has stopped it; otherwise something went wrong before.
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=180.0, trust_env=False) as client:
        yield client


def metric(http: httpx.Client, name: str) -> float:
    [line] = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.rsplit(" ", 1)[1])


def idle(http: httpx.Client) -> bool:
    """No request in hand, and every byte of the caches free."""
    return metric(http, "braid_requests_running") == 0 and all(
        metric(http, f'braid_cache_free_bytes{{shard="{shard}"}}')
        == metric(http, f'braid_cache_total_bytes{{shard="{shard}"}}')
        for shard in ("left", "right")
    )


def http_tokens(http: httpx.Client, **options: object) -> list[int]:
    answer = http.post("/generate", json={"prompt": PROMPT, **SAMPLED, **options})
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["tokens"]]


def test_http_grpc_and_in_process_give_the_same_tokens(service: Service, http: httpx.Client) -> None:
    expected = asyncio.run(local_tokens(service.config, PROMPT, SAMPLED))
    assert len(expected) == SAMPLED["max_tokens"]
    assert http_tokens(http) == expected
    with BraidClient(service.grpc_target) as client:
        assert [token.token_id for token in client.generate(PROMPT, **SAMPLED).tokens] == expected


def test_events_are_streamed_as_they_happen(http: httpx.Client) -> None:
    names, text = [], ""
    with http.stream("POST", "/generate", json={"prompt": PROMPT, **SAMPLED, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                text += json.loads(line.removeprefix("data: ")).get("text", "")
    assert names == ["started", *["token"] * SAMPLED["max_tokens"], "choice_finished", "finished"]
    assert text == http.post("/generate", json={"prompt": PROMPT, **SAMPLED}).json()["text"]


def test_completions_stream_too(http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": [PROMPT, "x"], **SAMPLED}
    whole = http.post("/v1/completions", json=body).json()
    texts = ["", ""]
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_clients_that_hang_up_leave_the_caches_as_they_were(service: Service, http: httpx.Client) -> None:
    long = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
    for path in ("/generate", "/v1/completions"):
        with http.stream("POST", path, json=long) as response:
            next(response.iter_lines())
    with BraidClient(service.grpc_target) as client, client.stream(PROMPT, max_tokens=200) as events:
        next(iter(events))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/generate", json={**long, "stream": False}, timeout=0.3, trust_env=False)
    eventually(lambda: idle(http), 30.0, "all caches are free again")


def test_bad_requests_leave_the_caches_as_they_were(service: Service, http: httpx.Client) -> None:
    assert http.post("/generate", json={"prompt": PROMPT, "max_tokens": 5000}).status_code == 400
    assert http.post("/generate", json={"prompt": "x" * 300}).status_code == 400
    assert http.post("/generate", json={"prompt": [999]}).status_code == 400
    assert http.post("/v1/fusion/versions/activate", json={"version": "v9"}).status_code == 404
    with BraidClient(service.grpc_target) as client:
        with pytest.raises(ContextLengthError, match="max_tokens: got 5000"):
            client.generate(PROMPT, max_tokens=5000)
        with pytest.raises(UnknownModelError):
            client.generate(PROMPT, model="nobody")
    eventually(lambda: idle(http), 30.0, "all caches are free again")


def test_scores_agree_over_both_transports(service: Service, http: httpx.Client) -> None:
    with BraidClient(service.grpc_target) as client:
        score = client.score(PROMPT)
    answer = http.post("/score", json={"prompt": PROMPT}).json()
    assert answer["token_ids"] == list(score.token_ids)
    assert answer["logprobs"] == pytest.approx(list(score.logprobs))
    assert answer["bits_per_byte"] > 0


def braid(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_the_command_line_gives_the_same_text_whomever_it_asks(service: Service, http: httpx.Client) -> None:
    options = ["--seed", "11", "--temperature", "0.9", "--max-tokens", "12"]
    expected = http.post(
        "/generate", json={"prompt": PROMPT, "seed": 11, "temperature": 0.9, "max_tokens": 12}
    ).json()
    ways = (
        ["--target", service.url],
        ["--target", service.grpc_target],
        ["--local", "--config", str(service.config)],
    )
    for way in ways:
        answer = json.loads(braid("generate", PROMPT, *way, *options, "--json").stdout)
        assert answer["text"] == expected["text"], way
        assert [token["id"] for token in answer["tokens"]] == [token["id"] for token in expected["tokens"]]
        assert answer["weights"] == pytest.approx(expected["weights"])
    streamed = braid("generate", PROMPT, "--target", service.url, *options)
    assert streamed.stdout == expected["text"] + "\n"
    assert "12 tokens" in streamed.stderr


def test_the_command_line_describes_the_same_braid_over_both_transports(service: Service) -> None:
    by_http, by_grpc = (
        json.loads(braid("describe", "--target", target, "--json").stdout)
        for target in (service.url, service.grpc_target)
    )
    for key in ("name", "anchor", "readout", "weights_version", "context_length"):
        assert by_http[key] == by_grpc[key]
    assert [point["layers"] for point in by_http["points"]] == [
        point["layers"] for point in by_grpc["points"]
    ]
    assert "fusion point" in braid("describe", "--target", service.grpc_target).stdout


def test_a_shard_that_is_killed_comes_back_and_no_token_changes(service: Service, http: httpx.Client) -> None:
    expected = http_tokens(http, max_tokens=200)
    others = set(service.program.pids()) - {service.program.process.pid}
    [victim] = [pid for pid in others if b"left" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    tokens: list[int] = []
    body = {"prompt": PROMPT, **SAMPLED, "max_tokens": 200, "stream": True}
    with http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                assert "error" not in data, data
                if "id" in data:
                    tokens.append(data["id"])
                if len(tokens) == 20 and victim:
                    os.kill(victim, signal.SIGKILL)
                    victim = 0
    assert victim == 0
    assert tokens == expected


def test_sigterm_ends_all_processes(service: Service, http: httpx.Client) -> None:
    assert http.get("/ready").status_code == 200
    assert len(service.program.pids()) == 4
    assert service.program.stop(signal.SIGTERM, STOP_S) == 0
    assert service.program.pids() == []
    assert "Traceback" not in service.program.output()


def test_a_model_that_is_not_there_ends_the_start_in_one_line(tmp_path: Path) -> None:
    settings = tiny_braid_settings(tmp_path)
    (tmp_path / "right" / "config.json").unlink()
    config = write_serve_file(tmp_path / "braid.yaml", settings, 0, 0)
    program = Program(
        [sys.executable, "-m", "braid_orchestrator.cli", "serve", "--config", str(config)], tmp_path / "log"
    )
    try:
        assert program.process.wait(READY_S) == 1
        assert "shard 'right' ended with exit code" in program.output()
        assert "Traceback" not in program.output()
        assert program.pids() == []
    finally:
        program.clean_up()
