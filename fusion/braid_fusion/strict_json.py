"""JSON that every parser reads. It has no numbers for NaN and infinities, so null stands for them. Knows nothing of
what is written."""

from __future__ import annotations

import json
import math
from typing import Any


def dump_json(value: Any, **options: Any) -> str:
    """What `json.dumps` gives with these options, with null for each float that is not finite.

    Raises: TypeError or ValueError for what JSON can't hold.
    """
    return json.dumps(_without_non_finite(value), allow_nan=False, **options)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_non_finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(one) for one in value]
    return value
