"""JSON as parsers other than Python's read it."""

from __future__ import annotations

import json
from typing import Any


def parse_strictly(text: str) -> Any:
    """Raises: ValueError for what is no JSON, NaN and infinities included."""

    def refuse(constant: str) -> None:
        raise ValueError(f"got {constant}, which JSON hasn't")

    return json.loads(text, parse_constant=refuse)
