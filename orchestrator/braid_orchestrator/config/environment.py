"""Single keys of a braid's configuration overridden from the environment.

``BRAID_ANCHOR=prose`` sets ``anchor``; two underscores go one level down: ``BRAID_LIMITS__MAX_WAITING=10``,
``BRAID_SHARDS__CODE__DTYPE=bfloat16`` (shards by name), ``BRAID_POINTS__0__STRATEGY=router`` (points by name
or number). Values are read as YAML. A variable whose first word is no key of the configuration is somebody
else's and passed over, unless it is so close to one that it must be a slip of the pen.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import yaml

from braid_rpc.errors import ConfigError

PREFIX = "BRAID_"
KEYS = (
    *(
        "name",
        "anchor",
        "preset",
        "shards",
        "points",
        "readout",
        "fusion",
        "braiding",
        "limits",
        "state",
        "auth",
    ),
    "seed",
)
# Settings of the command line, not of the braid.
RESERVED = frozenset(
    {"BRAID_TARGET", "BRAID_CONFIG", "BRAID_LOG_LEVEL", "BRAID_LOG_FORMAT", "BRAID_API_KEYS", "BRAID_API_KEY"}
)


def apply_environment(settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings with every override in place; the argument is left as it was.

    Raises: ConfigError for an override that leads nowhere or is not YAML.
    """
    result: dict[str, Any] = copy.deepcopy(dict(settings))
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in RESERVED:
            continue
        path = [part.lower() for part in variable.removeprefix(PREFIX).split("__")]
        if path[0] not in KEYS:
            close = difflib.get_close_matches(path[0], KEYS, n=1, cutoff=0.75)
            if close:
                meant = PREFIX + close[0].upper()
                raise ConfigError(f"environment variable {variable}: no such key, did you mean {meant}?")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"environment variable {variable}: got {text!r}, expected a YAML value"
            ) from None
        _set(result, path, value, variable)
    return result


def _set(node: Any, path: list[str], value: object, variable: str) -> None:
    for depth, key in enumerate(path[:-1]):
        node = _child(node, key, variable, where=".".join(path[:depth]))
    key = path[-1]
    if isinstance(node, list):
        node[_index(node, key, variable, where=".".join(path[:-1]))] = value
    else:
        node[_spelling(node, key)] = value


def _child(node: Any, key: str, variable: str, where: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, key, variable, where)]
    else:
        spelled = _spelling(node, key)
        child = node.get(spelled)
        if child is None or (isinstance(child, str) and key == "readout"):
            child = node[spelled] = {} if child is None else {"kind": child}
    if not isinstance(child, dict | list):
        raise ConfigError(
            f"environment variable {variable}: {where or 'braid'}.{key} is {child!r}, nothing lies below"
        )
    return child


def _spelling(node: dict[str, Any], key: str) -> str:
    """The key as the file spells it: variables know neither case nor anything but underscores."""
    for spelled in node:
        if isinstance(spelled, str) and _plain(spelled) == key:
            return spelled
    return key


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _index(entries: list[Any], key: str, variable: str, where: str) -> int:
    names = [entry.get("name", "") if isinstance(entry, dict) else "" for entry in entries]
    for i, name in enumerate(names):
        if isinstance(name, str) and name and _plain(name) == key:
            return i
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    known = ", ".join(str(name) or str(i) for i, name in enumerate(names)) or "nothing"
    raise ConfigError(f"environment variable {variable}: no {key!r} in {where}, expected one of: {known}")
