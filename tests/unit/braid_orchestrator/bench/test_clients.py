"""Clients count the tokens of streams however their bytes are cut, and say what went wrong otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from braid_orchestrator.bench.clients import Stream, StreamingClient, tokens_per_s
from braid_rpc.errors import BraidError, UnavailableError

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'2a\r\nevent: token\ndata: {"id":1}\n\n\r\n'


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[StreamingClient]:
    """A server that sends these bytes, one write each, to whoever asks."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield StreamingClient("127.0.0.1", server.sockets[0].getsockname()[1])


def ask(num_tokens: int, *pieces: bytes) -> Stream:
    async def run() -> Stream:
        async with answering(*pieces) as client:
            return await client.generate([1, 2], num_tokens)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "pieces", [(HEAD + TOKEN + TOKEN,), (HEAD, TOKEN[:20], TOKEN[20:] + TOKEN[:9], TOKEN[9:], b"0\r\n\r\n")]
)
def test_tokens_are_counted_however_they_are_cut(pieces: tuple[bytes, ...]) -> None:
    stream = ask(2, *pieces)
    assert stream.sent_s <= stream.token_s[0] <= stream.token_s[1]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((HEAD + TOKEN,), "a stream of 1 tokens, expected 2"),
        ((b"HTTP/1.1 429 Too Many\r\n\r\nlater",), "answered 429: later"),
        ((HEAD + b'20\r\nevent: error\ndata: {"message":"lost"}\n\n\r\n',), "lost"),
    ],
)
def test_an_answer_without_its_tokens_is_an_error(pieces: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(BraidError, match=message):
        ask(2, *pieces)


def test_nobody_there_is_an_error() -> None:
    async def run() -> None:
        async with answering() as client:
            pass
        await client.generate([1], 1)

    with pytest.raises(UnavailableError, match="no service at"):
        asyncio.run(run())


def test_tokens_count_while_all_streams_write() -> None:
    early = Stream(0.0, [1.0, 2.0, 3.0, 4.0])
    late = Stream(0.0, [2.5, 3.5, 4.5, 5.5])
    assert tokens_per_s([early]) == pytest.approx(1.0)
    assert tokens_per_s([early, late]) == pytest.approx(3 / 1.5)  # 3.0, 3.5 and 4.0
    with pytest.raises(BraidError, match="never wrote all at the same time"):
        tokens_per_s([early, Stream(0.0, [6.0, 7.0])])
