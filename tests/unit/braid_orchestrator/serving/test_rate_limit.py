from __future__ import annotations

import pytest
from redis_server import RedisServer

from braid_orchestrator.serving.rate_limit import RateLimiter
from braid_orchestrator.state.memory import MemoryStore
from braid_orchestrator.state.redis_store import RedisStore
from braid_rpc.errors import RateLimitError


async def test_each_caller_has_a_count_and_each_minute_a_new_one() -> None:
    now = 0.0
    limiter = RateLimiter(MemoryStore(lambda: now), 2)
    for caller in ("one", "other", "one", "other"):
        await limiter.admit(caller)
    now = 40.0
    with pytest.raises(
        RateLimitError, match="request 3 of this caller within a minute, expected at most 2"
    ) as e:
        await limiter.admit("one")
    assert e.value.retry_after_s == 20.0
    now = 60.0
    await limiter.admit("one")


async def test_orchestrators_count_together_and_alone_while_redis_is_away(redis_server: RedisServer) -> None:
    stores = [RedisStore(redis_server.url, "tiny") for _ in range(2)]
    one, other = (RateLimiter(store, 2) for store in stores)
    await one.admit("caller")
    await other.admit("caller")
    with pytest.raises(RateLimitError):
        await one.admit("caller")
    with redis_server.client() as client:
        assert not any(b"caller" in key for key in client.scan_iter()), (
            "what callers are called is nobody's business"
        )
    redis_server.stop()
    await one.admit("caller")
    await one.admit("caller")
    with pytest.raises(RateLimitError):
        await one.admit("caller")
    for store in stores:
        store.close()
