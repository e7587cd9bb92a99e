"""A braid of tiny models behind its real HTTP and gRPC servers, in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from braids import braid_config, two_backends
from models import byte_tokenizer
from programs import eventually

from braid_orchestrator.assembly import assemble_local
from braid_orchestrator.config.values import BraidConfig, LimitsConfig
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.front_ends import FrontEnds
from braid_orchestrator.serving.metrics import MeteredService
from braid_orchestrator.serving.service import BraidService
from braid_services.shard.backend import ShardBackend

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('expected a system, user or assistant role, got ' + message.role) }}{% endif %}"
    "{{ message.role[0] + ':' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
LIMITS = LimitsConfig(max_running=32, max_waiting=64, max_batch_tokens=256, prefill_chunk=64)


@dataclass(frozen=True)
class Served:
    """Where it answers, and what is behind it."""

    url: str
    grpc_target: str
    service: BraidService
    backends: Sequence[ShardBackend]

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def http(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60.0, trust_env=False, **options)  # type: ignore[arg-type]

    def idle(self) -> bool:
        """No request in hand, and every byte of the caches free."""
        stats = self.service.stats()
        return stats.running == stats.waiting == 0 and all(
            backend.card.cache_bytes_free == backend.card.cache_bytes_total for backend in self.backends
        )

    def wait_until_idle(self) -> None:
        eventually(self.idle, 30.0, "no request in hand and all caches free")


def chatting_backends(context: int = 256) -> list[ShardBackend]:
    """Only the first has a chat template."""
    backends = two_backends(context=context)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    backends[0].tokenizer = tokenizer
    return backends


@contextmanager
def served(
    backends: Sequence[ShardBackend] | None = None,
    config: BraidConfig | None = None,
    keys: ApiKeys | None = None,
) -> Iterator[Served]:
    """Up and answering; gone afterwards, with everything that it held."""
    backends = chatting_backends() if backends is None else backends
    service = assemble_local(config or braid_config(limits=LIMITS), backends)
    started = threading.Event()
    found: dict[str, object] = {}

    async def main(listener: socket.socket) -> None:
        fronts = FrontEnds(MeteredService(service), listener, "127.0.0.1:0", keys)
        found.update(loop=asyncio.get_running_loop(), fronts=fronts, failed=None)
        await fronts.run(started.set)

    def run(listener: socket.socket) -> None:
        try:
            asyncio.run(main(listener))
        finally:
            started.set()

    try:
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            thread = threading.Thread(target=run, args=(listener,), name="front ends")
            thread.start()
            assert started.wait(30), "the front ends did not start"
            fronts, loop = found["fronts"], found["loop"]
            assert isinstance(fronts, FrontEnds) and isinstance(loop, asyncio.AbstractEventLoop)
            try:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                yield Served(url, fronts.grpc_target, service, backends)
            finally:
                loop.call_soon_threadsafe(fronts.begin_exit)
                thread.join(30)
                assert not thread.is_alive(), "the front ends did not end"
    finally:
        service.stop()
