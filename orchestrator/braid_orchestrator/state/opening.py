"""Opens the store that a braid's configuration names."""

from __future__ import annotations

from pathlib import Path

from braid_orchestrator.config.values import StateConfig
from braid_orchestrator.state.memory import MemoryStore
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import ConfigError


def open_store(config: StateConfig, namespace: str) -> StateStore:
    """The store of the braid called ``namespace``. Whether it answers shows at the first call.

    Raises: ConfigError for a malformed URL, a password file that can't be read, or a package that is missing.
    """
    if config.store == "memory":
        return MemoryStore()
    from braid_orchestrator.state.redis_store import RedisStore

    return RedisStore(config.url or "", namespace, _password(config.password_file))


def _password(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"state.password_file: cannot read {path}: {error}") from None
