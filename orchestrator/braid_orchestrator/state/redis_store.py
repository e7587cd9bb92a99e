"""The state store that several machines share: a Redis server, 5 or newer.

All keys of a braid carry the hash tag ``{braid:NAME}``, so that they lie in one slot of a Redis cluster, and each
table has a set of its keys beside it: the server is never scanned. Knows no meaning of any value.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from braid_orchestrator.state.store import Count, Subscription
from braid_rpc.errors import BraidError, ConfigError, CorruptStateError, UnavailableError

_log = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_RETRY_AFTER_S = 1.0
_LISTEN_S = 0.2

# KEYS: the index. ARGV: what precedes a key's name. Gives key, value, key, value, …; "" for what is no string.
_ITEMS = """
local found = {}
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local value = redis.pcall('GET', ARGV[1] .. key)
  if type(value) == 'table' then value = '' end
  if value then
    found[#found + 1] = key
    found[#found + 1] = value
  else
    redis.call('SREM', KEYS[1], key)
  end
end
return found
"""
# KEYS: value, index. ARGV: key, whether something is expected, what, the new value, milliseconds (0: for good).
_SWAP = """
local there = redis.call('GET', KEYS[1])
if ARGV[2] == '0' then
  if there then return 0 end
elseif there ~= ARGV[3] then
  return 0
end
if ARGV[5] == '0' then redis.call('SET', KEYS[1], ARGV[4])
else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) end
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""
# KEYS: counter. ARGV: milliseconds of the window.
_COUNT = """
local count = redis.call('INCR', KEYS[1])
if count == 1 or redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {count, redis.call('PTTL', KEYS[1])}
"""


class RedisStore:
    """A `StateStore` on a Redis server. It connects with its first call, and again after every loss."""

    def __init__(self, url: str, namespace: str, password: str | None = None) -> None:
        """``url``: ``redis://host:port/db``, ``rediss://`` for TLS, or ``unix:///path``.

        Raises: ConfigError for a malformed URL, or if the `redis` package is not installed.
        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ConfigError(
                "state.store: redis needs the package `redis`: pip install '.[redis]'"
            ) from None
        self._errors = redis.exceptions
        self.name = f"redis at {_without_secrets(url)}"
        options: dict[str, Any] = {} if password is None else {"password": password}
        try:
            # One retry at once: a connection that the server closed while it was idle is no loss.
            self._redis = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
                **options,
            )
        except ValueError as error:
            raise ConfigError(f"state.url: got {_without_secrets(url)!r}: {error}") from None
        self._prefix = f"{{braid:{namespace}}}:"
        self._items = self._redis.register_script(_ITEMS)
        self._swap = self._redis.register_script(_SWAP)
        self._count = self._redis.register_script(_COUNT)
        self._subscriptions: list[_RedisSubscription] = []

    def get(self, table: str, key: str) -> bytes | None:
        """See `StateStore`."""
        with self._answering():
            value: bytes | None = self._redis.get(self._value(table, key))
            return value

    def items(self, table: str) -> dict[str, bytes]:
        """See `StateStore`."""
        with self._answering():
            flat = self._items(keys=[self._index(table)], args=[self._value(table, "")])
        return {key.decode(errors="replace"): value for key, value in zip(flat[::2], flat[1::2], strict=True)}

    def put(self, table: str, key: str, value: bytes, expiry_s: float | None = None) -> None:
        """See `StateStore`."""
        with self._answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self._value(table, key), value, px=_milliseconds(expiry_s) or None)
            pipeline.sadd(self._index(table), key)
            pipeline.execute()

    def swap(
        self, table: str, key: str, expected: bytes | None, value: bytes, expiry_s: float | None = None
    ) -> bool:
        """See `StateStore`."""
        with self._answering():
            return bool(
                self._swap(
                    keys=[self._value(table, key), self._index(table)],
                    args=[key, int(expected is not None), expected or b"", value, _milliseconds(expiry_s)],
                )
            )

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """See `StateStore`."""
        names = list(keys)
        if names:
            with self._answering(), self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(*(self._value(table, key) for key in names))
                pipeline.srem(self._index(table), *names)
                pipeline.execute()

    def append(self, entries: Mapping[str, bytes], expiry_s: float, begun: Container[str] = ()) -> None:
        """See `StateStore`."""
        if not entries:
            return
        with self._answering(), self._redis.pipeline(transaction=True) as pipeline:
            for key, value in entries.items():
                if key in begun:
                    pipeline.delete(self._log(key))
                pipeline.rpush(self._log(key), value)
                pipeline.pexpire(self._log(key), _milliseconds(expiry_s))
            pipeline.execute()

    def read_log(self, key: str) -> list[bytes]:
        """See `StateStore`."""
        with self._answering():
            return list(self._redis.lrange(self._log(key), 0, -1))

    def remove_logs(self, keys: Iterable[str]) -> None:
        """See `StateStore`."""
        names = [self._log(key) for key in keys]
        if names:
            with self._answering():
                self._redis.delete(*names)

    def count(self, key: str, window_s: float) -> Count:
        """See `StateStore`."""
        with self._answering():
            counted, left_ms = self._count(
                keys=[f"{self._prefix}count:{key}"], args=[_milliseconds(window_s)]
            )
        return Count(int(counted), max(int(left_ms), 0) / 1000)

    def publish(self, topic: str, message: bytes) -> None:
        """See `StateStore`."""
        with self._answering():
            self._redis.publish(f"{self._prefix}topic:{topic}", message)

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> Subscription:
        """See `StateStore`. Returns once the server has confirmed it; listens again after every loss."""
        with self._answering():
            listener = self._redis.pubsub(ignore_subscribe_messages=False)
            listener.subscribe(f"{self._prefix}topic:{topic}")
            listener.get_message(timeout=_TIMEOUT_S)
        subscription = _RedisSubscription(listener, on_message, self._errors.RedisError, topic)
        self._subscriptions.append(subscription)
        return subscription

    def ping(self) -> None:
        """See `StateStore`."""
        with self._answering():
            self._redis.ping()

    def close(self) -> None:
        """See `StateStore`."""
        for subscription in self._subscriptions:
            subscription.close()
        self._redis.close()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except (errors.ConnectionError, errors.TimeoutError, OSError) as error:
            raise UnavailableError(
                f"state store: {self.name} does not answer ({type(error).__name__})",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        except errors.ResponseError as error:
            if "WRONGTYPE" in str(error) or "not an integer" in str(error):
                raise CorruptStateError(
                    f"state store: {self.name} holds something of another kind than was written there: {error}"
                ) from error
            raise UnavailableError(
                f"state store: {self.name} refuses: {error}", retry_after_s=_RETRY_AFTER_S
            ) from error
        except errors.RedisError as error:
            raise BraidError(f"state store: {self.name}: {error}") from error

    def _value(self, table: str, key: str) -> str:
        return f"{self._prefix}{table}:{key}"

    def _index(self, table: str) -> str:
        return f"{self._prefix}index:{table}"

    def _log(self, key: str) -> str:
        return f"{self._prefix}log:{key}"


class _RedisSubscription:
    def __init__(
        self, listener: Any, on_message: Callable[[bytes], None], failures: type[Exception], topic: str
    ) -> None:
        self._listener = listener
        self._on_message = on_message
        self._failures = failures
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"redis-{topic}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                message = self._listener.get_message(timeout=_LISTEN_S)
            except (self._failures, OSError):
                self._closing.wait(_RETRY_AFTER_S)
                continue
            if message is None or message["type"] != "message":
                continue
            try:
                self._on_message(message["data"])
            except Exception:  # noqa: BLE001 - one bad notice is no reason to hear no more
                _log.exception("a notice from the state store could not be used")
        self._listener.close()


def _milliseconds(seconds: float | None) -> int:
    """0 stands for no end."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
