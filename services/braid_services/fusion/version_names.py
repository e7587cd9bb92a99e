"""What a version of the weights may be called. Knows no versions."""

from __future__ import annotations

import os
import re
from pathlib import Path

from braid_rpc.errors import InvalidRequestError

UNTRAINED = "untrained"
"""The version that is always there."""
MAX_NAME_BYTES = 255
"""Of one name in a path, on Linux's file systems."""

# Stricter than what may lie in a folder already: it is to mean the same on every system, and in a shell.
_NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", re.ASCII)


def is_folder_name(version: str) -> bool:
    """Whether a folder of versions may have a folder of that name."""
    is_name = (
        version and not version.startswith(".") and Path(version).name == version and "\0" not in version
    )
    return bool(is_name) and len(os.fsencode(version)) <= MAX_NAME_BYTES


def check_new_name(version: str) -> None:
    """Raises: InvalidRequestError unless a new version may be called that."""
    if _NEW_NAME.fullmatch(version) is None:
        raise InvalidRequestError(
            f"version: got {version[:200]!r}, expected at most 128 of the letters a to z, digits, '.', '_', '+' and "
            "'-', beginning with a letter or digit"
        )
