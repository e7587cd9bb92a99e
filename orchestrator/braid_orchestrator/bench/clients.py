"""Clients that ask a service over HTTP at the same time, each on a connection of its own, and note when tokens come.

Written on bare sockets: on a machine that the service needs too, a client should cost next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from braid_rpc.errors import BraidError, UnavailableError

_EVENT_BYTES = 2**20


@dataclass(slots=True)
class Stream:
    """One request's answer: when it was sent, and when each token was there, by `time.perf_counter`."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        """From sending to the first token."""
        return self.token_s[0] - self.sent_s


class StreamingClient:
    """Asks `/generate` of the service at ``host``:``port`` for greedy streams of a given length."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def generate(
        self, prompt: Sequence[int], num_tokens: int, first_token: asyncio.Event | None = None
    ) -> Stream:
        """One request; ``first_token`` is set when that has come. Cancelling hangs up.

        Raises: UnavailableError, BraidError if the service refuses or the stream ends with an error.
        """
        body = json.dumps(
            {
                "prompt": list(prompt),
                "max_tokens": num_tokens,
                "temperature": 0.0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=_EVENT_BYTES)
        except OSError as error:
            raise UnavailableError(
                f"no service at {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        try:
            stream = Stream(time.perf_counter())
            writer.write(
                f"POST /generate HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await self._read(reader, stream, first_token)
        finally:
            writer.close()
        if len(stream.token_s) != num_tokens:
            raise BraidError(f"a stream of {len(stream.token_s)} tokens, expected {num_tokens}")
        return stream

    async def at_once(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Stream]:
        """One request per prompt, all at the same time. Raises: as `generate`."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.generate(prompt, num_tokens)) for prompt in prompts]
        return [task.result() for task in tasks]

    @staticmethod
    async def _read(reader: asyncio.StreamReader, stream: Stream, first_token: asyncio.Event | None) -> None:
        """The framing of chunks is not taken apart: an event ends with an empty line, whichever chunk it is in."""
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if status != b"200":
            answer = (await reader.read(_EVENT_BYTES)).decode(errors="replace")
            raise BraidError(f"the service answered {status.decode()}: {answer[:300]}")
        while True:
            try:
                event = await reader.readuntil(b"\n\n")
            except asyncio.IncompleteReadError:
                return
            if b"event: token\n" in event:
                stream.token_s.append(time.perf_counter())
                if first_token is not None:
                    first_token.set()
            elif b"event: error\n" in event:
                raise BraidError(f"a stream ended with {event.decode(errors='replace')[:300]}")


def tokens_per_s(streams: Sequence[Stream]) -> float:
    """While all of them were writing: from the last one's first token to the first one's last."""
    start_s = max(stream.token_s[0] for stream in streams)
    end_s = min(stream.token_s[-1] for stream in streams)
    if end_s <= start_s:
        raise BraidError("the streams never wrote all at the same time, expected more tokens of each")
    times = [at_s for stream in streams for at_s in stream.token_s if start_s < at_s <= end_s]
    return len(times) / (end_s - start_s)
