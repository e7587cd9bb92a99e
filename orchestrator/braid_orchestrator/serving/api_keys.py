"""The keys that open a braid to its users. Knows neither HTTP nor gRPC: both bring an ``Authorization`` value."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path

from braid_rpc.errors import AuthenticationError, ConfigError

KEYS_VARIABLE = "BRAID_API_KEYS"
_SCHEME = "bearer"


class ApiKeys:
    """One key or several, each as good as the others. Only their hashes are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises: ConfigError without any key."""
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]
        if not self._digests:
            raise ConfigError("auth: got no API key, expected at least one")

    @classmethod
    def load(cls, path: str | None, environment: Mapping[str, str]) -> ApiKeys | None:
        """Those of a file (one per line; empty lines and lines beginning with # don't count) and those of
        BRAID_API_KEYS (separated by commas). None if neither is set: then nobody is asked for a key.

        Raises: ConfigError for a file that can't be read, and if what is set holds no key: nothing is left open
        by mistake.
        """
        listed = environment.get(KEYS_VARIABLE)
        if path is None and listed is None:
            return None
        keys = [key.strip() for key in (listed or "").split(",")]
        if path is not None:
            keys += _read(path)
        try:
            return cls(key for key in keys if key)
        except ConfigError:
            where = " and ".join(filter(None, [path, None if listed is None else KEYS_VARIABLE]))
            raise ConfigError(f"auth: got no API key in {where}, expected at least one") from None

    def check(self, authorization: str | None) -> None:
        """Raises: AuthenticationError unless the value is ``Bearer`` and one of the keys. Takes the same time
        whichever key it is, and however much of one is right."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != _SCHEME or not key.strip():
            got = "no API key" if not authorization else "another scheme than Bearer"
            raise AuthenticationError(f"authorization: got {got}, expected 'Bearer' and an API key")
        given = _digest(key.strip())
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            raise AuthenticationError("authorization: got an API key that is not known here")


def caller(authorization: str | None, address: str, *, has_keys: bool) -> str:
    """Whose request it is: the key's, where keys are asked for (it was checked already); else the address's, for
    anybody can make a key up."""
    key = (authorization or "").partition(" ")[2].strip()
    return f"key {key}" if has_keys and key else f"address {address}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _read(path: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"auth.api_keys_file: cannot read {path}: {reason}") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if not line.startswith("#")]
