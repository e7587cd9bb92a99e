"""A whole service of the measured pair, as `braid serve` starts it: models on disk, a configuration, processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.braids import Variant
from braid_orchestrator.bench.pair import NAMES, SEEDS, ModelSize, make_model, make_tokenizer
from braid_orchestrator.child_command import child_command
from braid_rpc.errors import BraidError

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
_READY = re.compile(r"is ready: http://([^:/ ]+):(\d+)")
_LOG_LINES = 15


def save_pair(folder: Path, size: ModelSize) -> None:
    """Both models with their tokenizer, in the Hugging Face layout, each in a folder of its name."""
    disable_progress_bar()  # it would write over ours
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(size.vocab_size))
    for name, seed in zip(NAMES, SEEDS, strict=True):
        make_model(seed, size).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def service_file(folder: Path, variant: Variant, max_running: int) -> Path:
    """The configuration of a service of the pair in ``folder``; it may listen on any free ports."""
    config = variant.config()
    braid: dict[str, Any] = {
        "name": config.name,
        "anchor": config.anchor,
        "shards": [
            {"name": name, "model": str(folder / name), "threads": 1, "cache_bytes": "2GiB"} for name in NAMES
        ],
        "points": [
            {"at": point.at, "strategy": point.strategy, "fusion_width": point.fusion_width}
            for point in config.points
        ],
        "readout": variant.readout,
        "fusion": {"placement": "service" if variant.placement == "service" else "embedded", "threads": 1},
        "limits": {"max_running": max_running},
    }
    document = {
        "http_options": {"host": "127.0.0.1", "port": 0},
        "grpc_options": {"port": 0},
        "applications": [{"name": "braid", "args": braid}],
    }
    path = folder / "braid.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class RunningService:
    """Where HTTP is answered, and the process that answers; its children are the other parts."""

    host: str
    port: int
    pid: int

    def cpu_s(self) -> float:
        """Processor time of the process and its children so far. Raises: OSError where /proc doesn't say."""
        pids, total = [self.pid], _cpu_s(self.pid)
        while pids:
            children = _children(pids.pop())
            pids += children
            for child in children:
                with suppress(ProcessLookupError, FileNotFoundError):  # ended since
                    total += _cpu_s(child)
        return total


@contextmanager
def running_service(config: Path) -> Iterator[RunningService]:
    """The service of a configuration, ready on entry and gone on exit, or when this process ends in between.

    Raises: BraidError with the end of what it printed if it doesn't come up.
    """
    command = child_command("serve", "--config", str(config))
    log = config.with_suffix(".log")
    # Its settings are in the file, whatever the environment of whoever measures says.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRAID_")}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
    too_late = threading.Timer(READY_TIMEOUT_S, process.kill)
    too_late.start()
    try:
        try:
            host, port = _wait_ready(process)
        except BraidError as error:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            raise BraidError("\n".join([error.message, *lines])) from error
        finally:
            too_late.cancel()
        yield RunningService(host, port, process.pid)
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    for line in process.stdout or ():
        ready = _READY.search(line.decode(errors="replace"))
        if ready is not None:
            return ready[1], int(ready[2])
    raise BraidError(f"the service ended with exit code {process.wait()} before it was ready:")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children see the end of their input, and end
        process.communicate()


def _children(pid: int) -> list[int]:
    """Of a process that may end meanwhile, as may each of its threads."""
    children: list[int] = []
    with suppress(ProcessLookupError, FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError, FileNotFoundError):
                children += map(int, (task / "children").read_text(encoding="ascii").split())
    return children


def _cpu_s(pid: int) -> float:
    # The name of the program, which may hold anything, stands in brackets before the numbers.
    fields = (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
