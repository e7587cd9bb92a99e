"""Clients that mean no good, or no longer care: others are served, and everything is free afterwards."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import httpx
import pytest
from programs import eventually
from served import Served, chatting_backends, served

from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions
from braid_orchestrator.serving import service as service_module
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.connections import patient_protocol
from braid_rpc import BraidClient
from braid_rpc.errors import AuthenticationError, RequestCancelledError

LONG = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def braid() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(braid: Served) -> Iterator[None]:
    yield
    braid.wait_until_idle()


def address(braid: Served) -> tuple[str, int]:
    url = httpx.URL(braid.url)
    return url.host, int(url.port or 0)


def post(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: braid", "Content-Type: application/json"]
    head += [f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(head).encode() + data


@pytest.fixture
def many_files() -> Iterator[int]:
    """Room for both ends of a thousand connections in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_that_say_nothing_keep_nobody_out(braid: Served, many_files: int) -> None:
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(address(braid), timeout=10))
            for _ in range(many_files)
        ]
        for number, connection in enumerate(silent):
            if number % 2:
                connection.sendall(b"POST /generate HTTP/1.1\r\nHost:")
        with braid.http() as http:
            started = time.monotonic()
            answer = http.post("/generate", json={"prompt": "the", "max_tokens": 2})
            assert answer.status_code == 200
            assert time.monotonic() - started < 10
        # The oldest had to go: what is held stays bounded.
        silent[0].settimeout(10)
        assert _is_closed(silent[0])
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


async def test_a_connection_that_says_half_a_sentence_is_closed_after_a_while() -> None:
    import uvicorn

    async def app(scope: dict, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    config = uvicorn.Config(app, http=patient_protocol(8, 0.2), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve([listener]))
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            async with asyncio.timeout(10):
                # Whole requests, one after the other, are never cut off.
                for _ in range(3):
                    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert b"204" in await reader.readuntil(b"\r\n\r\n")
                writer.write(b"GET / HTTP/1.1\r\nHo")
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
        finally:
            server.should_exit = True
            await serving


def test_a_client_that_hangs_up_in_the_middle_of_its_body_leaves_nothing(braid: Served) -> None:
    for cut in (10, 120, 150):
        with socket.create_connection(address(braid)) as connection:
            connection.sendall(post("/v1/completions", LONG)[:cut])
    with braid.http() as http:
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_hangs_up_is_worked_for_no_longer(braid: Served, path: str, stream: bool) -> None:
    body = {"max_tokens": 200, "ignore_eos": True, "stream": stream, "n": 8}
    body |= {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "the"}
    before = braid.service.stats().completion_tokens
    with socket.create_connection(address(braid)) as connection:
        connection.sendall(post(path, body))
        eventually(lambda: braid.service.stats().completion_tokens > before, 30.0, "it is being answered")
    braid.wait_until_idle()
    assert braid.service.stats().completion_tokens - before < 8 * 200


async def test_events_that_nobody_takes_end_their_request(
    braid: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_UNREAD_EVENTS", 20)
    events = braid.service.generate(
        GenerateRequest("the", SamplingOptions(max_tokens=200, ignore_eos=True), n=4)
    )
    before = braid.service.stats().completion_tokens
    taken = [await anext(events)]
    # This loop goes on, so that events pile up; only nobody takes them.
    await asyncio.to_thread(
        eventually, lambda: braid.service.stats().completion_tokens > before, 30.0, "it is being answered"
    )
    await asyncio.to_thread(braid.wait_until_idle)
    with pytest.raises(RequestCancelledError, match="left 20 events unread"):
        async for event in events:
            taken.append(event)
    assert len(taken) == 21


def test_a_stream_that_nobody_reads_is_cancelled_and_others_are_served(
    braid: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_UNREAD_EVENTS", 20)
    before = braid.service.stats().completion_tokens
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(braid))
        connection.sendall(
            post(
                "/v1/chat/completions",
                {
                    "messages": [{"role": "user", "content": "x"}],
                    "n": 32,
                    "max_tokens": 240,
                    "ignore_eos": True,
                    "stream": True,
                    "logprobs": True,
                    "top_logprobs": 20,
                },
            )
        )
        eventually(lambda: braid.service.stats().completion_tokens > before, 30.0, "it is being answered")
        braid.wait_until_idle()
        assert braid.service.stats().completion_tokens - before < 32 * 240
        with braid.http() as http:
            assert http.post("/generate", json={"prompt": "the", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    "text",
    ["x" * 2**22, "the inner " * 400_000, "\N{GRINNING FACE}" * 2**20],
    ids=["one word", "words", "emoji"],
)
def test_four_mebibytes_of_prompt_are_refused_at_once(braid: Served, text: str) -> None:
    bodies = {
        "/v1/completions": {"prompt": text},
        "/generate": {"prompt": text},
        "/score": {"prompt": text},
        "/tokenize": {"prompt": text},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
    }
    with braid.http() as http:
        for path, body in bodies.items():
            started = time.monotonic()
            answer = http.post(path, json=body)
            assert answer.status_code == 400, path
            assert answer.json()["error"]["type"] == "ContextLengthError"
            assert len(answer.text) < 1000
            assert time.monotonic() - started < 5, path
        assert http.post("/generate", json={"prompt": "x" * 2**24}).status_code == 413


def test_options_that_contradict_each_other_are_refused(braid: Served) -> None:
    contradictions = [
        {"min_tokens": 5, "max_tokens": 4},
        {"best_of": 2, "n": 3},
        {"stream_options": {"include_usage": True}},
        {"logit_bias": {"999999": 1.0}},
        {"stop_token_ids": [999999]},
        {"stop": ["x"] * 17},
    ]
    with braid.http() as http:
        for options in contradictions:
            answer = http.post("/v1/completions", json={"prompt": "the", **options})
            error = answer.json()["error"]
            assert answer.status_code == 400, options
            assert error["param"] in options, error
            assert "got" in error["message"] and "expected" in error["message"]


def test_grpc_asks_for_the_same_keys_as_http() -> None:
    with served(chatting_backends(), keys=ApiKeys(["open-sesame"])) as guarded:
        with guarded.http() as http:
            assert http.get("/metrics").status_code == 401
            assert http.get("/health").status_code == 200
        for key in ("", "sesame"):
            with BraidClient(guarded.grpc_target, api_key=key) as client:
                for call in (
                    client.describe,
                    lambda c=client: c.generate("x"),
                    lambda c=client: c.score("x"),
                ):
                    with pytest.raises(AuthenticationError, match="authorization: got"):
                        call()
        with BraidClient(guarded.grpc_target, api_key="open-sesame") as client:
            assert client.describe().name == "tiny"
            assert len(client.generate("x", max_tokens=2, ignore_eos=True).tokens) == 2
        with grpc.insecure_channel(guarded.grpc_target) as channel:
            reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as refused:
                next(reflect(iter([b""]), timeout=10))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=10) == b"\x08\x01"
