"""Values of the store as msgpack: plain data only, checked against what they should be. Never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from braid_rpc.errors import CorruptStateError


def pack(value: object) -> bytes:
    """Numbers, text, bytes, lists and mappings as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(value: bytes, what: str) -> Any:
    """What `pack` was given, tuples as lists. Raises: CorruptStateError, naming ``what``."""
    try:
        return msgpack.unpackb(value, raw=False, strict_map_key=False)
    except Exception as error:  # the library raises several that have nothing in common
        raise CorruptStateError(
            f"state store: {what}: got {len(value)} bytes that are not msgpack ({type(error).__name__}), "
            "expected what a braid writes there"
        ) from error


def unpack_record(value: bytes, fields: Mapping[str, type | tuple[type, ...]], what: str) -> dict[str, Any]:
    """A mapping that has at least these fields, of these types; others may have been added by a newer version.

    Raises: CorruptStateError, naming ``what`` and the first field that is wrong.
    """
    record = unpack(value, what)
    if not isinstance(record, dict):
        raise CorruptStateError(f"state store: {what}: got {type(record).__name__}, expected a mapping")
    for name, kinds in fields.items():
        if not isinstance(record.get(name), kinds):
            raise CorruptStateError(
                f"state store: {what}: got {name} {str(record.get(name))[:40]!r}, expected {_names(kinds)}"
            )
    return {name: record[name] for name in fields}


def _names(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
