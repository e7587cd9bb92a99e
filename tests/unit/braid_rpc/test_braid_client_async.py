from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from braid_rpc.braid_client_async import AsyncBraidClient
from braid_rpc.completions import ChoiceFinished, Finished, Started, Token
from braid_rpc.errors import (
    BraidError,
    DeadlineError,
    InvalidRequestError,
    ProtocolVersionError,
    RequestCancelledError,
    UnavailableError,
)

from .fake_braid import QUEUE_FULL, FakeBraid
from .fakes import serving

LONG_S = 20.0
Connect = Callable[..., AsyncBraidClient]


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:
        clients = await stack.enter_async_context(AsyncExitStack())

        def make(braid: FakeBraid, **options: Any) -> AsyncBraidClient:
            server = stack.enter_context(serving(braid, tmp_path))
            client = AsyncBraidClient(server.targets[0], **{"timeout_s": LONG_S, **options})
            clients.push_async_callback(client.close)
            return client

        yield make
        await clients.aclose()


async def cancelled(braid: FakeBraid) -> bool:
    return await asyncio.to_thread(braid.cancelled.wait, LONG_S)


async def test_the_answers_are_those_of_the_blocking_client(connect: Connect) -> None:
    client = connect(FakeBraid())
    done = await client.generate("hi", max_tokens=4)
    assert done.text == "0.0 1.0 2.0 3.0 end"
    assert done.weights == {"a": 0.75, "b": 0.25}
    async with client.stream([1, 2], max_tokens=2) as events:
        kinds = [type(event) async for event in events]
    assert kinds == [Started, Token, Token, ChoiceFinished, Finished]
    assert (await client.score("ab")).total_logprob == -2.0
    assert (await client.describe()).name == "fake"
    assert await client.cancel("known")


async def test_several_generations_run_at_the_same_time(connect: Connect) -> None:
    client = connect(FakeBraid())
    done = await asyncio.gather(*(client.generate("hi", max_tokens=10) for _ in range(8)))
    assert len({one.text for one in done}) == 1 and len({one.request_id for one in done}) == 8


async def test_what_nobody_answered_is_asked_again(connect: Connect) -> None:
    for call in (lambda c: c.generate("hi"), lambda c: c.score("hi"), lambda c: c.describe()):
        braid = FakeBraid(failures=2)
        await call(connect(braid))
        assert len(braid.requests) == 3


async def test_nothing_is_asked_again_after_closing_in_a_pause(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    braid = FakeBraid(failures=1)
    events = connect(braid).stream("hi")

    async def close_instead(_: float) -> None:
        await events.aclose()

    with monkeypatch.context() as pausing, pytest.raises(StopAsyncIteration):
        pausing.setattr(asyncio, "sleep", close_instead)
        await anext(events)
    assert len(braid.requests) == 1


async def test_a_generation_that_has_begun_is_not_repeated(connect: Connect) -> None:
    braid = FakeBraid(failures=1, fail_after=2)
    events = connect(braid).stream("hi")
    assert isinstance(await anext(events), Started) and isinstance(await anext(events), Token)
    with pytest.raises(UnavailableError):
        await anext(events)
    assert len(braid.requests) == 1


async def test_errors_are_typed(connect: Connect) -> None:
    for error in (QUEUE_FULL, BraidError("broken")):
        braid = FakeBraid(failures=1, error=error)
        with pytest.raises(type(error)) as caught:
            await connect(braid).generate("hi")
        assert (caught.value.message, caught.value.retry_after_s) == (error.message, error.retry_after_s)
    with pytest.raises(ProtocolVersionError):
        await connect(FakeBraid(protocol_version=3)).describe()
    with pytest.raises(InvalidRequestError, match=r"^temprature"):
        await connect(FakeBraid()).generate("hi", temprature=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("leave", ["break", "close", "drop", "cancel the task", "close the client"])
async def test_leaving_a_stream_early_cancels_it_on_the_server(connect: Connect, leave: str) -> None:
    braid = FakeBraid()
    braid.endless = True
    client = connect(braid)
    events = client.stream("hi")
    await anext(events)
    if leave == "break":
        async with events:
            async for _ in events:
                break
    elif leave == "close":
        await events.aclose()
        await events.aclose()
        assert [event async for event in events] == []
    elif leave == "drop":
        del events
        gc.collect()
    elif leave == "cancel the task":

        async def read() -> None:
            async for _ in events:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await client.close()
        with pytest.raises(RequestCancelledError):
            async for _ in events:
                pass
    assert await cancelled(braid)


async def test_a_timeout_is_a_deadline_and_cancels_on_the_server(connect: Connect) -> None:
    braid = FakeBraid()
    braid.endless = True
    with pytest.raises(DeadlineError):
        await connect(braid).generate("hi", timeout_s=0.3)
    assert await cancelled(braid)


async def test_nobody_there_is_unavailable_and_named(tmp_path: Path) -> None:
    async with AsyncBraidClient(f"unix:{tmp_path / 'nobody.sock'}", retries=0) as client:
        with pytest.raises(UnavailableError, match="nobody"):
            await client.generate("hi")
        with pytest.raises(UnavailableError, match="nobody"):
            await client.describe()
