"""`serve run` with a braid of tiny models: Ray, HTTP, server-sent events, gRPC, and an end without remains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from braids import local_tokens
from programs import Program, eventually, free_port, tiny_braid_settings, write_serve_file

from braid_rpc import BraidClient
from braid_rpc.errors import ContextLengthError, InvalidRequestError, UnknownModelError

pytest.importorskip("ray", reason="needs ray, which is absent")

PROMPT = "the inner thread"
READY_S, STOP_S = 300.0, 60.0
SAMPLED = {"max_tokens": 24, "temperature": 0.9, "seed": 11, "ignore_eos": True}

pytestmark = pytest.mark.timeout(600)


@dataclass
class Service:
    program: Program
    config: Path
    url: str
    grpc_target: str


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    http_port, grpc_port = free_port(), free_port()
    config = write_serve_file(folder / "braid.yaml", tiny_braid_settings(folder), http_port, grpc_port)
    serve = str(Path(sys.executable).with_name("serve"))
    # A cluster of its own, whatever else runs on this machine.
    environment = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    program = Program([serve, "run", str(config)], folder / "log", **environment)
    url = f"http://127.0.0.1:{http_port}"
    try:
        program.wait_until(lambda: is_ready(url), READY_S, "serve run is ready")
        yield Service(program, config, url, f"127.0.0.1:{grpc_port}")
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=180.0, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def grpc_client(service: Service) -> Iterator[BraidClient]:
    with BraidClient(service.grpc_target) as client:
        yield client


def test_ray_gives_the_same_tokens_as_one_process(
    service: Service, http: httpx.Client, grpc_client: BraidClient
) -> None:
    expected = asyncio.run(local_tokens(service.config, PROMPT, SAMPLED))
    answer = http.post("/generate", json={"prompt": PROMPT, **SAMPLED}).json()
    assert [token["id"] for token in answer["tokens"]] == expected
    assert [token.token_id for token in grpc_client.generate(PROMPT, **SAMPLED).tokens] == expected


def test_events_are_streamed_over_http(http: httpx.Client) -> None:
    names = []
    with http.stream("POST", "/generate", json={"prompt": PROMPT, **SAMPLED, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        names = [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]
    assert names == ["started", *["token"] * SAMPLED["max_tokens"], "choice_finished", "finished"]


def test_completions_stream_over_http(http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": PROMPT, **SAMPLED}
    whole = http.post("/v1/completions", json=body).json()
    text = ""
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert text == whole["choices"][0]["text"]


def test_a_braid_describes_itself_over_grpc(grpc_client: BraidClient) -> None:
    card = grpc_client.describe()
    assert [shard.name for shard in card.shards] == ["left", "right"]
    assert [point.strategy for point in card.points] == ["mlp", "router"]


def test_errors_keep_their_type_through_both_proxies(http: httpx.Client, grpc_client: BraidClient) -> None:
    with pytest.raises(UnknownModelError, match="'nobody'"):
        grpc_client.generate(PROMPT, model="nobody")
    with pytest.raises(ContextLengthError, match="max_tokens: got 5000"):
        grpc_client.generate(PROMPT, max_tokens=5000)
    with pytest.raises(InvalidRequestError, match="empty"):
        grpc_client.score("")
    response = http.post("/generate", json={"prompt": PROMPT, "model": "nobody"})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "UnknownModelError")
    assert http.post("/generate", json={"prompt": PROMPT, "temperature": -1}).status_code == 400


def test_its_shards_train_and_it_uses_what_came_of_it(
    service: Service, http: httpx.Client, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the thing in the other inner theatre is thin there " * 12)
    command = [sys.executable, "-m", "braid_orchestrator.cli", "train", "--config", str(service.config)]
    command += [
        "--serve",
        "braid",
        "--publish",
        service.url,
        "--text",
        str(text),
        "--into",
        str(tmp_path / "run"),
    ]
    command += ["--steps", "2", "--window", "12", "--batch", "2", "--json"]
    before = http.get("/v1/fusion/versions/active").json()["active"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    published = json.loads(done.stdout)["published"]
    assert published["active_version"] == published["version"] != before
    answer = http.post("/generate", json={"prompt": PROMPT, **SAMPLED}).json()
    assert answer["weights_version"] == published["version"]


def test_clients_that_hang_up_free_what_they_held(http: httpx.Client, grpc_client: BraidClient) -> None:
    def idle() -> bool:
        values = dict(
            line.rsplit(" ", 1)
            for line in http.get("/metrics").text.splitlines()
            if line[:1] not in ("", "#")
        )
        return float(values["braid_requests_running"]) == 0 and all(
            values[f'braid_cache_free_bytes{{shard="{shard}"}}']
            == values[f'braid_cache_total_bytes{{shard="{shard}"}}']
            for shard in ("left", "right")
        )

    long = {"prompt": PROMPT, "max_tokens": 230, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/generate", json=long) as response:
        next(response.iter_lines())
    with grpc_client.stream(PROMPT, max_tokens=230, ignore_eos=True) as events:
        next(iter(events))
    eventually(idle, 30.0, "nothing runs and all caches are free")


def test_a_replica_that_is_killed_comes_back_and_no_token_changes(
    service: Service, http: httpx.Client
) -> None:
    body = {"prompt": PROMPT, **SAMPLED, "max_tokens": 200}
    expected = [token["id"] for token in http.post("/generate", json=body).json()["tokens"]]
    [victim] = [
        pid
        for pid in service.program.pids()
        if b"ServeReplica:braid:right" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    tokens: list[int] = []
    with http.stream("POST", "/generate", json={**body, "stream": True}) as response:
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


def test_ctrl_c_ends_everything(service: Service) -> None:
    service.program.stop(signal.SIGINT, STOP_S)
    eventually(lambda: service.program.pids() == [], 30.0, "no process of Ray or Braid is left")
