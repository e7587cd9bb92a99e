"""Objects in other processes: called, waited for together, and never left behind."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from programs import Program, eventually

from braid_orchestrator.bench.workers import Crew
from braid_rpc.errors import BraidError, InvalidRequestError, UnavailableError

# For a program of its own that imports this module.
IMPORTS = os.pathsep.join([str(Path(__file__).parent), *sys.path])


class Servant:
    def __init__(self, number: int) -> None:
        if number < 0:
            raise InvalidRequestError(f"number: got {number}, expected at least 0")
        self.number = number

    def add(self, more: int) -> int:
        return self.number + more

    def fail(self) -> None:
        raise ValueError("broken")

    def vanish(self) -> None:
        os._exit(3)


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


def test_calls_are_answered_and_errors_told(crew: Crew) -> None:
    first, second = crew.hire("first", Servant, 1), crew.hire("second", Servant, 2)
    ready: list[str] = []
    crew.wait_ready([first, second], lambda worker: ready.append(worker.name))
    assert ready == ["first", "second"]
    first.ask("add", 10)
    second.ask("add", 10)
    assert (second.result(), first.result()) == (12, 11)
    with pytest.raises(BraidError, match="'first': ValueError: broken"):
        first.call("fail")
    assert first.call("add", 1) == 2
    assert first.cpu_s() > 0
    assert set(crew.idle_share(0.05)) == {"first", "second"}


def test_a_process_that_cannot_begin_says_why(crew: Crew) -> None:
    with pytest.raises(BraidError, match="number: got -1"):
        crew.hire("wrong", Servant, -1).wait_ready()


def test_a_process_that_ends_is_noticed(crew: Crew) -> None:
    worker = crew.hire("gone", Servant, 0)
    worker.wait_ready()
    with pytest.raises(UnavailableError, match="'gone' has ended"):
        worker.call("vanish")


def test_no_process_is_left_behind() -> None:
    with pytest.raises(RuntimeError, match="in between"), Crew() as crew:
        worker = crew.hire("left", Servant, 0)
        worker.wait_ready()
        raise RuntimeError("in between")
    assert not worker.is_alive


class Sleeper:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = (folder / "held").open("w")
        fcntl.flock(self.held, fcntl.LOCK_EX)  # until the process ends

    def sleep(self) -> None:
        (self.folder / "asleep").touch()
        time.sleep(120)

    def stop(self) -> None:
        (self.folder / "stopped").touch()


def hire_and_ask(folder: Path) -> None:
    with Crew() as crew:
        worker = crew.hire("sleeper", Sleeper, folder)
        worker.wait_ready()
        worker.ask("sleep")
        time.sleep(120)


def is_free(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_a_call_does_not_outlive_the_process_that_asked(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=hire_and_ask, args=(tmp_path,))
    parent.start()
    eventually((tmp_path / "asleep").exists, 100, "a call")
    parent.kill()
    parent.join()
    with (tmp_path / "held").open("w") as held:
        eventually(lambda: is_free(held), 100, "the end of the process")
    assert (tmp_path / "stopped").exists()


INTERRUPTED = """
import sys
from pathlib import Path
from test_workers import hire_and_ask

if __name__ == "__main__":
    try:
        hire_and_ask(Path(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
"""


@pytest.mark.parametrize("when", ["in a call", "while it begins"])
def test_ctrl_c_is_heard_by_who_asked_alone(tmp_path: Path, when: str) -> None:
    """A terminal sends it to all processes of a command."""
    program = tmp_path / "interrupted.py"
    program.write_text(INTERRUPTED)
    begin = Program([sys.executable, str(program), str(tmp_path)], tmp_path / "log", PYTHONPATH=IMPORTS)
    try:
        if when == "in a call":
            begin.wait_until((tmp_path / "asleep").exists, 100, "a call")
        else:
            begin.wait_until(lambda: len(begin.pids()) > 1, 100, "a process")
        os.killpg(begin.process.pid, signal.SIGINT)
        begin.process.wait(60)
        assert begin.output() == "interrupted\n"
        eventually(lambda: not begin.pids(), 60, "the end of all processes")
    finally:
        begin.clean_up()
