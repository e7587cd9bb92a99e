"""deploy/compose.yaml brought up for real: built, asked, looked into, and taken down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from braids import local_tokens
from containers import Compose, save_demo, why_no_engine
from docblocks import REPOSITORY, code_blocks
from programs import eventually, free_port

from braid_orchestrator.config.values import BraidConfig
from braid_rpc import BraidClient

PROMPT = "the inner thread"
SAMPLED = {"max_tokens": 24, "temperature": 0.9, "seed": 11, "ignore_eos": True}
README, DEPLOYMENT = REPOSITORY / "README.md", REPOSITORY / "docs" / "deployment.md"
BUILD_S, UP_S = 900.0, 300.0
SPREAD_S, ANSWERS_S = 180.0, 240.0
LONG, CLIENTS = 120, 4
SESSIONS = "from braid_rpc import ShardClient; print(ShardClient('127.0.0.1:7000').describe().num_sessions)"
SERVICES = ("redis", "code", "prose", "fusion", "orchestrator")

pytestmark = [pytest.mark.compose, pytest.mark.timeout(BUILD_S + UP_S)]


@dataclass
class Braid:
    """Where it answers, and what it should answer."""

    compose: Compose
    config: BraidConfig
    url: str
    grpc_target: str

    def tokens(self, **options: object) -> list[int]:
        answer = httpx.post(
            f"{self.url}/generate",
            json={"prompt": PROMPT, **SAMPLED, **options},
            timeout=120.0,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return [token["id"] for token in answer.json()["tokens"]]


def commands(path: Path, heading: str) -> list[str]:
    """Those with compose in all blocks under a heading of a document."""
    blocks = (block for block in code_blocks(path, "bash") if block.heading == heading)
    lines = (line.partition(" #")[0] for block in blocks for line in block.code.splitlines())
    return [line for line in lines if line.startswith("docker compose ")]


class Load:
    """`CLIENTS` threads that ask again and again until they are told to stop, or one is refused."""

    def __init__(self, ask: Callable[[], list[int]]) -> None:
        self.answers: list[list[int]] = []
        self._ask = ask
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> Load:
        self._clients = [self._pool.submit(self._go_on) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self.is_well()

    def is_well(self) -> bool:
        """Raises what any client met."""
        for client in self._clients:
            if client.done():
                client.result()
        return True

    def wait_for(self, more: int, timeout_s: float) -> None:
        """Until so many more answers are there, from requests that began before and after."""
        before = len(self.answers)
        eventually(
            lambda: self.is_well() and len(self.answers) >= before + more, timeout_s, f"{more} answers"
        )

    def _go_on(self) -> None:
        while not self._over.is_set():
            self.answers.append(self._ask())


@pytest.fixture(scope="module")
def braid(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Braid]:
    if reason := why_no_engine():
        pytest.skip(reason)
    models = tmp_path_factory.mktemp("models")
    config = save_demo(models)
    http_port, grpc_port = free_port(), free_port()
    compose = Compose(
        BRAID_MODELS=str(models), BRAID_HTTP_PORT=str(http_port), BRAID_GRPC_PORT=str(grpc_port)
    )
    up_command, _, down_command = commands(README, "Use it")
    failed_before = request.session.testsfailed
    up = False
    try:
        compose.shell(up_command, BUILD_S + UP_S)
        up = True
        yield Braid(compose, config, f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    finally:
        if not up or request.session.testsfailed > failed_before:
            compose.print_logs()
        compose.shell(down_command)
    assert compose.run("ps", "--all", "--quiet") == ""


def test_containers_give_the_same_tokens_as_one_process_by_http_and_grpc(braid: Braid) -> None:
    expected = asyncio.run(local_tokens(braid.config, PROMPT, SAMPLED))
    assert braid.tokens() == expected
    with BraidClient(braid.grpc_target) as client:
        assert [token.token_id for token in client.generate(PROMPT, **SAMPLED).tokens] == expected


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_well_and_may_do_no_more_than_it_has_to(braid: Braid, service: str) -> None:
    (container,) = braid.compose.containers(service)
    state = braid.compose.inspect(container)
    assert state["State"]["Health"]["Status"] == "healthy"
    assert not state["Config"]["User"].startswith(("0", "root")) and state["Config"]["User"]
    host = state["HostConfig"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0 and host["PidsLimit"] > 0
    assert not any(mount["RW"] for mount in state["Mounts"])
    published = {port for port, bound in state["NetworkSettings"]["Ports"].items() if bound}
    assert published == ({"8000/tcp", "9000/tcp"} if service == "orchestrator" else set())


def test_a_part_that_does_not_answer_is_not_well(braid: Braid) -> None:
    with pytest.raises(AssertionError, match="no answer to a health check"):
        braid.compose.run("exec", "code", "braid", "health", "127.0.0.1:1")
    assert "is well" in braid.compose.run("exec", "code", "braid", "health", "fusion:7000")


def test_sessions_spread_over_two_replicas_and_losing_one_changes_no_token(braid: Braid) -> None:
    expected = braid.tokens(max_tokens=LONG)
    braid.compose.shell(commands(README, "Use it")[1], UP_S)
    replicas = braid.compose.containers("code")
    assert len(replicas) == 2
    seen: set[str] = set()

    def both_have_sessions() -> bool:
        seen.update(replica for replica in replicas if sessions(braid, replica) > 0)
        return load.is_well() and len(seen) == 2

    with Load(lambda: braid.tokens(max_tokens=LONG)) as load:
        eventually(both_have_sessions, SPREAD_S, "both replicas have sessions")
        braid.compose.kill(replicas[0])
        load.wait_for(2 * CLIENTS, ANSWERS_S)
    assert set(map(tuple, load.answers)) == {tuple(expected)}
    assert braid.compose.containers("code") == replicas[1:]


def sessions(braid: Braid, replica: str) -> int:
    """How many a shard's container has now."""
    return int(braid.compose.python(replica, SESSIONS))


def test_what_the_documentation_shows_of_a_running_braid(braid: Braid) -> None:
    up, ps, logs, down = commands(DEPLOYMENT, "Containers")
    up_again, scale, down_again = commands(README, "Use it")
    assert (up_again, down_again) == (up, down) and [scale] == commands(
        DEPLOYMENT, "More replicas of a shard"
    )
    assert all(service in braid.compose.shell(ps) for service in SERVICES)
    assert "is ready" in braid.compose.shell(logs)
