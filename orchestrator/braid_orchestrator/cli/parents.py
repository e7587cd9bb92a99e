"""Commands that another program starts, and that end when it does, however it ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Annotated

import typer

# Whoever gives it holds the other end of the command's standard input, and never writes.
ExitWithParent = Annotated[bool, typer.Option("--exit-with-parent", hidden=True)]


def when_parent_ends(then: Callable[[], object]) -> None:
    """Call ``then`` from a thread when the standard input ends."""

    def wait_for_parent() -> None:
        # The file descriptor itself: a buffered reader would hold a lock when the interpreter ends.
        os.read(0, 1)
        then()

    threading.Thread(target=wait_for_parent, name="parent", daemon=True).start()
