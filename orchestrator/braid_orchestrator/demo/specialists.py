"""Trains all specialists at once, each in a process of its own, and follows their progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from braid_fusion.training import Progress
from braid_orchestrator.demo.pretrain import PretrainJob
from braid_rpc.errors import BraidError


def train_specialists(
    jobs: Sequence[PretrainJob], scratch: Path, on_progress: Callable[[str, Progress], None]
) -> None:
    """Run the jobs side by side; returns when all are done. On any error or interrupt the others end too.

    Args:
        scratch: a folder for job files and for what the processes say.
        on_progress: gets the specialist's name; called from threads of its own.

    Raises: BraidError with the end of what a failed process said.
    """
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for job in jobs:
            processes.append(_start(job, scratch))
            reader = threading.Thread(
                target=_follow, args=(processes[-1], job.specialist.name, on_progress), daemon=True
            )
            reader.start()
            readers.append(reader)
        for job, process in zip(jobs, processes, strict=True):
            if process.wait() != 0:
                said = _complaints(scratch, job).read_text(errors="replace").strip().splitlines()
                raise BraidError(
                    f"training of specialist {job.specialist.name!r} ended with exit code "
                    f"{process.returncode}: {' / '.join(said[-3:])}"
                )
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for process in processes:
            if process.stdout is not None:
                process.stdout.close()


def _start(job: PretrainJob, scratch: Path) -> subprocess.Popen[str]:
    path = scratch / f"{job.specialist.name}.json"
    job.write(path)
    # One thread each: two processes of two threads on two cores would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with _complaints(scratch, job).open("w") as complaints:
        return subprocess.Popen(
            [sys.executable, "-m", "braid_orchestrator.demo.pretrain", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
            text=True,
        )


def _complaints(scratch: Path, job: PretrainJob) -> Path:
    return scratch / f"{job.specialist.name}.stderr"


def _follow(process: subprocess.Popen[str], name: str, on_progress: Callable[[str, Progress], None]) -> None:
    if process.stdout is None:
        return
    for line in process.stdout:
        if line.startswith("{"):
            on_progress(name, Progress(**json.loads(line)))
