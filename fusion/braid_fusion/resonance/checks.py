"""Values from outside, checked by name. Knows not what they are for."""

from __future__ import annotations

from braid_fusion.errors import GraftConfigError

LARGEST = 2**16
"""Of a width or a count: far above any model's, and low enough that nothing absurd is built."""

MOST_COUPLING = 100.0
"""Of oscillators, either way: far beyond what brings any into phase within one step."""


def check_whole(what: str, value: object, low: int, high: int) -> None:
    """Raises: GraftConfigError, naming ``what``, unless it is an int of [low, high]; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise GraftConfigError(f"{what}: got {value!r}, expected a whole number from {low} to {high}")


def check_number(what: str, value: object, low: float, high: float) -> None:
    """Raises: GraftConfigError, naming ``what``, unless it is a number of [low, high]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise GraftConfigError(f"{what}: got {value!r}, expected a number from {low:g} to {high:g}")


def check_flags(config: object, where: str, *keys: str) -> None:
    """Raises: GraftConfigError unless all these are true or false."""
    for key in keys:
        if not isinstance(getattr(config, key), bool):
            name = f"{where}.{key}" if where else key
            raise GraftConfigError(f"{name}: got {getattr(config, key)!r}, expected true or false")
