"""What a benchmark asks of a running service's processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from braid_orchestrator.bench.service import RunningService

RESTLESS = """
import subprocess, sys, threading
print("ready", flush=True)
while True:
    threads = [threading.Thread(target=int) for _ in range(8)]
    for thread in threads:
        thread.start()
    subprocess.run([sys.executable, "-S", "-c", ""])
"""


def test_processor_time_is_told_while_children_and_threads_come_and_go() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", RESTLESS], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            service = RunningService("127.0.0.1", 0, process.pid)
            until, told = time.monotonic() + 1.0, []
            while time.monotonic() < until:
                told.append(service.cpu_s())
            assert told[-1] > 0
        finally:
            process.kill()


def test_a_process_that_is_not_there_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not os.path.exists(f"/proc/{process.pid}")
    with pytest.raises(OSError, match=str(process.pid)):
        RunningService("127.0.0.1", 0, process.pid).cpu_s()
