"""Predicates by name: functions of a prompt's text that say who is to answer. Knows no particular one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from braid_fusion.errors import DeciderError

Answerer = bool | str
"""True: the braid. False: its anchor alone. A name: that shard alone."""

Predicate = Callable[[str], Answerer]
"""Is called once per request that asks for a decision, from any thread."""

PredicateT = TypeVar("PredicateT", bound=Predicate)

_PREDICATES: dict[str, Predicate] = {}


def register_predicate(*names: str) -> Callable[[PredicateT], PredicateT]:
    """A decorator: configurations may name the function from now on.

    Raises: DeciderError for a name with a slash, which would be taken for a folder.
    """

    def register(function: PredicateT) -> PredicateT:
        for name in names:
            if not name or "/" in name:
                raise DeciderError(f"predicate: got the name {name!r}, expected one without a slash")
            _PREDICATES[name] = function
        return function

    return register


def predicate_names() -> tuple[str, ...]:
    """All names that are registered."""
    return tuple(sorted(_PREDICATES))


def find_predicate(name: str) -> Predicate:
    """The predicate of that name. Raises: DeciderError, naming those that there are."""
    if name not in _PREDICATES:
        known = ", ".join(predicate_names()) or "none is registered"
        raise DeciderError(f"predicate: got {name!r}, expected one of: {known}")
    return _PREDICATES[name]
