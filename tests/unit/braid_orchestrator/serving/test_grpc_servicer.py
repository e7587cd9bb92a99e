from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from braid_orchestrator.serving.grpc_servicer import BraidRpc, BraidServer, fail_serve_call
from braid_orchestrator.serving.probing import probe
from braid_rpc import AsyncBraidClient, StabilityOptions
from braid_rpc.completions import Token
from braid_rpc.errors import (
    BraidError,
    InvalidRequestError,
    QueueFullError,
    RateLimitError,
    UnavailableError,
    UnknownModelError,
)
from braid_rpc.v1 import braid_pb2

from ..fake_service import CHOICE_STABILITY, TOKEN_STABILITY, FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def target(service: FakeService, tmp_path: Path) -> AsyncIterator[str]:
    server = BraidServer(lambda: service, [f"unix:{tmp_path}/braid.sock"])
    await server.start()
    yield server.targets[0]
    await server.stop(0)


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncBraidClient]:
    async with AsyncBraidClient(target, retries=0) as client:
        yield client


async def test_a_completion_comes_whole(client: AsyncBraidClient, service: FakeService) -> None:
    done = await client.generate(
        "x", max_tokens=9, temperature=0.5, seed=3, n=2, logit_bias={4: -1.0}, logprobs=1
    )
    assert done.text == "one two three"
    assert [choice.finish_reason for choice in done.choices] == ["stop", "stop"]
    assert done.weights == {"left": 0.75, "right": 0.25}
    assert done.tokens[0].logprob == -0.5
    assert done.timings.total_s == 0.3
    [request] = service.requests
    assert request.sampling.temperature == 0.5
    assert request.sampling.seed == 3
    assert request.sampling.logit_bias == {4: -1.0}
    assert request.sampling.top_p == 1.0


async def test_who_asks_is_told_how_stable_the_text_is(
    client: AsyncBraidClient, service: FakeService
) -> None:
    done = await client.generate("x", stability=StabilityOptions(stop=True, threshold=0.5, window=9))
    assert service.requests[-1].stability == StabilityOptions(stop=True, threshold=0.5, window=9)
    assert [token.stability for token in done.tokens] == [TOKEN_STABILITY] * 3
    assert done.stability == done.choices[0].stability == CHOICE_STABILITY
    assert done.finish_reason == "instability"
    await client.generate("x", stability=StabilityOptions())
    assert service.requests[-1].stability == StabilityOptions()
    plain = await client.generate("x")
    assert plain.tokens[0].stability is plain.stability is service.requests[-1].stability is None


async def test_token_ids_and_one_shard_alone(client: AsyncBraidClient, service: FakeService) -> None:
    done = await client.generate([5, 6], model="right")
    assert done.model == "right"
    assert (service.requests[0].prompt, service.requests[0].shard) == ((5, 6), "right")


async def test_score_describe_and_cancel(client: AsyncBraidClient) -> None:
    assert (await client.score("abc")).logprobs == (0.0, -1.0, -2.0)
    card = await client.describe()
    assert (card.name, card.anchor, card.readout, card.context_length) == ("pair", "left", "gate", 64)
    assert [shard.model_id for shard in card.shards] == ["models/left", "models/right"]
    assert card.points[0].layers == (1, 2)
    assert await client.cancel("known")
    assert not await client.cancel("other")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": -1.0}, InvalidRequestError, "temperature: got -1.0"),
        ({"model": "middle"}, UnknownModelError, "'middle'"),
        ({"max_tokens": 0}, InvalidRequestError, "max_tokens: got 0"),
    ],
)
async def test_a_bad_request_is_refused_by_type(
    client: AsyncBraidClient, service: FakeService, options: dict, error: type[BraidError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await client.generate("x", **options)
    assert service.requests == []


async def test_an_empty_prompt_is_refused(client: AsyncBraidClient) -> None:
    with pytest.raises(InvalidRequestError, match="prompt: got an empty prompt"):
        await client.generate("")


async def test_a_full_queue_says_when_to_come_back(client: AsyncBraidClient, service: FakeService) -> None:
    service.error = QueueFullError("queue: full", retry_after_s=1.5)
    with pytest.raises(QueueFullError) as caught:
        await client.generate("x")
    assert caught.value.retry_after_s == 1.5


async def test_no_traceback_reaches_a_user(client: AsyncBraidClient, service: FakeService) -> None:
    service.error = RuntimeError("secret detail")
    with pytest.raises(BraidError) as caught:
        await client.generate("x")
    assert "secret" not in str(caught.value)


async def test_leaving_a_stream_ends_the_request(client: AsyncBraidClient, service: FakeService) -> None:
    service.hang = True
    async with client.stream("x") as events:
        async for event in events:
            if isinstance(event, Token):
                break
    async with asyncio.timeout(10):
        await service.ended.wait()
    assert service.closed == 1


async def test_health_answers(target: str) -> None:
    await asyncio.to_thread(probe, target)


async def test_an_address_that_is_taken_is_told(service: FakeService) -> None:
    first = BraidServer(lambda: service, ["127.0.0.1:0"])
    try:
        with pytest.raises(UnavailableError, match=r"cannot listen on 127\.0\.0\.1"):
            BraidServer(lambda: service, [first.targets[0]])
    finally:
        await first.stop(0)


class ServeCall:
    """What Ray Serve hands to a method."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.metadata: dict[str, str] = {}

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        self.metadata = dict(trailing_metadata)


async def test_behind_serves_proxy_an_error_keeps_its_type(service: FakeService) -> None:
    service.error = QueueFullError("queue: full", retry_after_s=1.5)
    call = ServeCall()
    with pytest.raises(QueueFullError) as caught:
        async for _ in BraidRpc(lambda: service).generate(braid_pb2.GenerateRequest(text="x")):
            pass
    fail_serve_call(call, caught.value, "Generate")
    assert call.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call.details == "queue: full"
    assert call.metadata == {"braid-error-type": "QueueFullError", "braid-retry-after-s": "1.500"}


async def test_who_asks_too_much_is_told_when_to_come_back(
    client: AsyncBraidClient, service: FakeService
) -> None:
    service.too_many = RateLimitError("rate limit: got request 3", retry_after_s=17.0)
    with pytest.raises(RateLimitError, match="rate limit: got request 3") as refused:
        await client.generate("x", max_tokens=1)
    assert refused.value.retry_after_s == 17.0
    with pytest.raises(RateLimitError):
        await client.score("x")
    assert service.requests == []


async def test_the_callers_id_for_a_call_is_the_requests(target: str, service: FakeService) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        generate = channel.unary_stream(
            "/braid.v1.Braid/Generate",
            request_serializer=braid_pb2.GenerateRequest.SerializeToString,
            response_deserializer=braid_pb2.GenerateEvent.FromString,
        )
        for own, expected in (("", "trace-1"), ("own", "own")):
            message = braid_pb2.GenerateRequest(text="x", request_id=own)
            async for _ in generate(message, metadata=(("x-request-id", "trace-1"),)):
                pass
            assert service.requests[-1].request_id == expected
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in generate(braid_pb2.GenerateRequest(text="x"), metadata=(("x-request-id", "a b"),)):
                pass
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
