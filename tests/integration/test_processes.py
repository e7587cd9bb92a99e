from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import eventually

from braid_orchestrator.serving.probing import probe
from braid_orchestrator.serving.processes import ProcessSpec, Supervisor
from braid_rpc.errors import BraidError, UnavailableError

# A child without a model: it answers health checks until its parent is gone.
CHILD = """
import os, sys
from braid_services.serving import start_server
with start_server([], [sys.argv[1]]):
    os.read(0, 1)
"""
# A supervisor that says which processes it started.
PARENT = """
import sys, time
from braid_orchestrator.serving.processes import ProcessSpec, Supervisor
command = (sys.executable, "-c", sys.argv[1], sys.argv[2])
with Supervisor([ProcessSpec("child", command, sys.argv[2])]) as supervisor:
    supervisor.wait_ready(30)
    print(supervisor.pids["child"], flush=True)
    time.sleep(600)
"""
READY_S = 30.0


def spec(folder: Path, name: str, program: str = CHILD) -> ProcessSpec:
    target = f"unix:{folder}/{name}.sock"
    return ProcessSpec(name, (sys.executable, "-c", program, target), target)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def answers(target: str) -> bool:
    try:
        probe(target, timeout_s=1.0)
    except UnavailableError:
        return False
    return True


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with Supervisor([spec(tmp_path, "a"), spec(tmp_path, "b")]) as supervisor:
        supervisor.wait_ready(READY_S)
        pids = list(supervisor.pids.values())
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    with Supervisor([spec(tmp_path, "a"), spec(tmp_path, "b")]) as supervisor:
        supervisor.wait_ready(READY_S)
        before = supervisor.pids
        os.kill(before["a"], signal.SIGKILL)
        eventually(lambda: supervisor.pids["a"] != before["a"], READY_S, "a new process")
        eventually(lambda: answers(f"unix:{tmp_path}/a.sock"), READY_S, "the new process answers")
        assert supervisor.pids["b"] == before["b"]


def test_a_process_that_cannot_start_is_named(tmp_path: Path) -> None:
    specs = [spec(tmp_path, "good"), spec(tmp_path, "bad", "raise SystemExit(7)")]
    with (
        pytest.raises(BraidError, match="bad ended with exit code 7 before it was ready"),
        Supervisor(specs) as supervisor,
    ):
        supervisor.wait_ready(READY_S)
    assert not any(is_running(pid) for pid in supervisor.pids.values())


def test_a_process_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    silent = spec(tmp_path, "silent", "import os; os.read(0, 1)")
    with pytest.raises(UnavailableError, match="for 0"), Supervisor([silent]) as supervisor:
        supervisor.wait_ready(0.5)


def test_children_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/child.sock"
    command = [sys.executable, "-c", PARENT, CHILD, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    eventually(lambda: not is_running(child), 10.0, "the child is gone")
