"""Whole numbers in plans and options, which come from files and wires. Knows not what they are for."""

from __future__ import annotations

from braid_fusion.errors import PlanError


def whole_number(what: str, value: object, low: int, high: int) -> int:
    """``value`` itself, an int of [low, high]; true and false are none. Raises: PlanError, naming ``what``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanError(f"{what}: got {value!r}, expected a whole number from {low} to {high}")
    return value
