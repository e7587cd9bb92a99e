"""What `braid train` shows on a terminal: bars that are drawn over themselves, one at a time."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import yaml

STEPS = 12
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROWS, COLUMNS = 24, 100


def on_a_terminal(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit code, and all that a command writes to a terminal of that size, without colours and movements."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    written = bytearray()
    try:
        while piece := os.read(ours, 4096):
            written += piece
    except OSError:  # nobody has the other end any more
        pass
    finally:
        os.close(ours)
        process.kill()  # only if reading failed
    return process.wait(60), _ESCAPE.sub("", written.decode(errors="replace"))


def test_the_bar_of_a_run_keeps_to_its_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "braid.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "text.txt").write_text("the thing in the other inner theatre is thin there " * 12)
    command = [
        *(sys.executable, "-m", "braid_orchestrator.cli", "train", "--config", f"{tmp_path}/braid.yaml"),
        *("--text", f"{tmp_path}/text.txt", "--into", f"{tmp_path}/run", "--held-out-share", "0"),
        *("--steps", str(STEPS), "--window", "16", "--batch", "2"),
    ]
    code, written = on_a_terminal(command, TQDM_MININTERVAL="0", OMP_NUM_THREADS="1")
    assert code == 0, written
    drawn = written.count(f"/{STEPS} [")
    lines = [line for line in written.split("\n") if f"/{STEPS} [" in line]
    assert drawn >= STEPS and len(lines) <= 2, written
    assert "Loading weights" not in written
    assert f"{STEPS} steps in" in written
