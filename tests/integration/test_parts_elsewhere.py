"""`braid serve` over parts that run elsewhere: it starts no children and needs none of their files."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import httpx
import pytest
from braids import local_tokens
from programs import Program, eventually, tiny_braid_settings, write_serve_file
from redis_server import RedisServer
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app
from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.state.redis_store import RedisStore
from braid_orchestrator.state.registry import Registry
from braid_services.fusion.main import serve_fusion
from braid_services.shard.main import serve_shard

PROMPT = "the inner thread"
READY_S, STOP_S = 240.0, 30.0
SAMPLED = {"max_tokens": 24, "temperature": 0.9, "seed": 11, "ignore_eos": True}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    return write_serve_file(folder / "braid.yaml", tiny_braid_settings(folder), 0, 0)


@pytest.fixture(scope="module")
def expected(config: Path) -> list[int]:
    return asyncio.run(local_tokens(config, PROMPT, SAMPLED))


@pytest.fixture
def addresses(config: Path, expected: list[int]) -> Iterator[list[str]]:
    """Everything served; then the models' folders are out of the orchestrator's sight."""
    with ExitStack() as stack:
        options = []
        for shard in load_braid_config(config).shards:
            server = stack.enter_context(serve_shard(shard, ["127.0.0.1:0"]))
            options += ["--shard", f"{shard.name}={server.targets[0]}"]
        server = stack.enter_context(serve_fusion(None, None, ["127.0.0.1:0"]))
        folders = [config.parent / name for name in ("left", "right")]
        for folder in folders:
            stack.callback(folder.with_suffix(".away").rename, folder)
            folder.rename(folder.with_suffix(".away"))
        yield [*options, "--fusion", server.targets[0]]


def test_an_orchestrator_alone_gives_the_same_tokens(
    config: Path, expected: list[int], addresses: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "braid_orchestrator.cli", "serve", "--config", str(config), *addresses]
    program = Program(command, tmp_path / "log")
    try:
        with httpx.Client(base_url=url_when_ready(program), timeout=60.0, trust_env=False) as http:
            assert tokens_of(http.post("/generate", json={"prompt": PROMPT, **SAMPLED})) == expected
        assert program.pids() == [program.process.pid]
        assert program.stop(signal.SIGTERM, STOP_S) == 0
    finally:
        program.clean_up()


def test_parts_that_register_are_found(
    config: Path, expected: list[int], redis_server: RedisServer, tmp_path: Path
) -> None:
    braid = [sys.executable, "-m", "braid_orchestrator.cli"]
    common = ["--config", str(config), "--state", redis_server.url]
    parts = [["shard", "--name", name, "--target", "127.0.0.1:0"] for name in ("left", "left", "right")]
    parts.append(["fusion", "--target", "127.0.0.1:0"])
    with ExitStack() as stack:
        programs = []
        for number, part in enumerate([*parts, ["serve", "--join"], ["serve", "--join"]]):
            programs.append(Program([*braid, *part, *common], tmp_path / f"log{number}"))
            stack.callback(programs[-1].clean_up)
        first, second = programs[-2:]
        urls = [url_when_ready(program) for program in (first, second)]
        with ExitStack() as clients:
            here, there = (
                clients.enter_context(httpx.Client(base_url=url, timeout=60.0, trust_env=False))
                for url in urls
            )
            assert tokens_of(here.post("/generate", json={"prompt": PROMPT, **SAMPLED})) == expected
            eventually(lambda: num_registered(redis_server, "left") == 2, READY_S, "both have registered")
            assert programs[0].stop(signal.SIGTERM, STOP_S) == 0
            assert num_registered(redis_server, "left") == 1
            assert tokens_of(there.post("/generate", json={"prompt": PROMPT, **SAMPLED})) == expected
            assert first.pids() == [first.process.pid]
            # An orchestrator is killed in the middle of a request: the other one gives the same tokens.
            long = {"prompt": PROMPT, **SAMPLED, "max_tokens": 200}
            whole = tokens_of(there.post("/generate", json=long))
            with here.stream(
                "POST", "/generate", json={**long, "request_id": "mine", "stream": True}
            ) as response:
                for _ in islice(response.iter_lines(), 60):
                    pass  # three lines for each event
                os.kill(first.process.pid, signal.SIGKILL)
            eventually(
                lambda: there.get("/v1/requests").json() == {"orphaned": ["mine"]}, READY_S, "an orphan"
            )
            assert tokens_of(there.post("/v1/requests/mine/resume")) == whole
            assert there.get("/v1/requests").json() == {"orphaned": []}
        assert second.stop(signal.SIGTERM, STOP_S) == 0
        assert "Traceback" not in second.output()


def url_when_ready(program: Program) -> str:
    program.wait_until(lambda: "is ready" in program.output(), READY_S, "braid serve is ready")
    found = re.search(r"is ready: (\S+) ", program.output())
    assert found is not None
    return found[1]


def tokens_of(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["tokens"]]


def num_registered(redis_server: RedisServer, part: str) -> int:
    with closing(RedisStore(redis_server.url, "tiny")) as store:
        return len(Registry(store).replicas(part))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "left"], "expected NAME=TARGET such as left="),
        (["--shard", "middle=127.0.0.1:1"], "got 'middle', expected one of: left, right"),
        (["--shard", "left=127.0.0.1:1", "--shard", "left=127.0.0.1:2"], "got 'left' a second time"),
        (["--shard", "left=nowhere"], "expected 'host:port' or 'unix:/path'"),
        (["--join"], "got no state store to find parts in"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(config: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", str(config), *options])
    assert result.exit_code == 2
    assert message in result.output
