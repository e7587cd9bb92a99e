"""Who is served goes first, and while anybody is served training keeps to its share."""

from __future__ import annotations

import threading
import time
from itertools import cycle

import pytest

from braid_services.shard.turns import LONGEST_PAUSE_S, PAUSES, SERVED_LATELY_S, ComputeLock, TrainingTurns

WAIT_S = 10.0


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def test_whoever_is_served_goes_before_training_that_came_first() -> None:
    lock, order = ComputeLock(), []
    waiting = [threading.Event(), threading.Event()]

    def train() -> None:
        waiting[0].set()
        with lock.background():
            order.append("training")

    def serve() -> None:
        waiting[1].set()
        with lock.serving():
            order.append("serving")

    with lock.serving():
        first = threading.Thread(target=train)
        first.start()
        waiting[0].wait(WAIT_S)
        second = threading.Thread(target=serve)
        second.start()
        waiting[1].wait(WAIT_S)
        while not lock.is_serving(float("inf")):  # until the second one waits, too
            pass
    first.join(WAIT_S)
    second.join(WAIT_S)
    assert order == ["serving", "training"]


def test_nobody_holds_it_together_with_another() -> None:
    lock, inside, most = ComputeLock(), [0], [0]

    def enter() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1

    def serve() -> None:
        for _ in range(200):
            with lock.serving():
                enter()

    def train() -> None:
        for _ in range(200):
            with lock.background():
                enter()

    threads = [threading.Thread(target=work) for work in (serve, train, serve, train)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] and not lock.locked()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_training_takes_no_more_than_its_share_of_the_time_while_somebody_is_served(share: float) -> None:
    clock = Clock()
    lock = ComputeLock(clock)

    def sleep(seconds: float) -> None:
        clock.pass_s(seconds)
        with lock.serving():  # somebody is served all the time
            pass

    turns = TrainingTurns(lock, clock=clock, sleep=sleep)
    with lock.serving():
        pass
    trained_s = 0.0
    for length_s in (0.3, 0.02, 1.7, 0.4, 0.4):
        with turns.turn(share):
            clock.pass_s(length_s)
        trained_s += length_s
        with lock.serving():
            pass
    with turns.turn(share):  # after the rest that the last one owes
        pass
    assert trained_s / clock.now_s == pytest.approx(share, abs=0.02)


class Served:
    """Steps of ``step_s`` that keep coming, with the next one of ``pauses_s`` behind each. They run when time passes
    and nothing else runs."""

    def __init__(self, clock: Clock, lock: ComputeLock, step_s: float, pauses_s: tuple[float, ...]) -> None:
        self._clock = clock
        self._lock = lock
        self._step_s = step_s
        self._pauses_s = cycle(pauses_s)
        self._next_s = 0.0

    def catch_up(self) -> None:
        while self._next_s <= self._clock.now_s:
            with self._lock.serving():
                self._clock.pass_s(self._step_s)
            self._next_s = self._clock.now_s + next(self._pauses_s)

    def sleep(self, seconds: float) -> None:
        self._clock.pass_s(seconds)
        self.catch_up()


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize(
    "pauses_s",
    [(1.7,), (0.05, 0.05, 0.05, 3.0), (8.0,), (9.0, 0.0, 5.0)],
    ids=["long", "within a token and between tokens", "very long", "of all lengths"],
)
def test_the_share_holds_where_served_steps_come_seldom(pauses_s: tuple[float, ...], share: float) -> None:
    clock = Clock()
    lock = ComputeLock(clock)
    served = Served(clock, lock, 0.3, pauses_s)
    turns = TrainingTurns(lock, clock=clock, sleep=served.sleep)
    while clock.now_s < 20.0:  # how seldom is known after two
        served.sleep(0.02)
    began_s, trained_s = clock.now_s, 0.0
    while clock.now_s < began_s + 300.0:
        with turns.turn(share):
            clock.pass_s(0.3)
        trained_s += 0.3
        served.catch_up()
    # A rest may end while a step is served, and the next turn begins only behind that.
    assert 0.8 * share < trained_s / (clock.now_s - began_s) < share + 0.01


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_long_turns_and_long_steps_keep_to_the_share_too(share: float) -> None:
    """Served steps one after the other, each as long as a second, by a thread that is real."""
    clock, scale = time.monotonic, 0.02  # a fiftieth of a second for a second
    lock = ComputeLock(lambda: clock() / scale)
    turns = TrainingTurns(lock, clock=lambda: clock() / scale, sleep=lambda s: time.sleep(s * scale))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with lock.serving():
                time.sleep(1.0 * scale)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        began_s, trained_s = clock(), 0.0
        for _ in range(5):
            with turns.turn(share):
                turn_began_s = clock()
                time.sleep(1.2 * scale)
                trained_s += clock() - turn_began_s
        with turns.turn(share):  # after the rest that the last one owes
            took_s = clock() - began_s
    finally:
        stop.set()
        thread.join(30)
    assert trained_s / took_s <= share + 0.01


def test_training_goes_on_where_somebody_always_waits() -> None:
    lock, stop = ComputeLock(), threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with lock.serving():
                time.sleep(0.002)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with lock.background():
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_a_call_that_nobody_wants_any_more_gives_up_its_place() -> None:
    lock = ComputeLock()
    turns = TrainingTurns(lock)

    def gone() -> None:
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"), turns.turn(0.5, gone):
        raise AssertionError("it had its turn")
    with turns.turn(0.5):
        pass


def test_a_call_has_all_its_turns_before_another_has_its_first() -> None:
    turns, order = TrainingTurns(ComputeLock()), []

    def other() -> None:
        with turns.turn(1.0):
            order.append("other")

    thread = threading.Thread(target=other)
    with turns.call():
        with turns.turn(1.0):
            order.append("one")
            thread.start()
        thread.join(0.1)  # time enough to have its turn, if it could
        with turns.turn(1.0):
            order.append("one")
    thread.join(WAIT_S)
    assert order == ["one", "one", "other"]


def test_training_alone_never_rests() -> None:
    clock = Clock()
    turns = TrainingTurns(ComputeLock(clock), clock=clock, sleep=clock.pass_s)
    for _ in range(5):
        with turns.turn(0.1):
            clock.pass_s(1.0)
    assert clock.now_s == 5.0


@pytest.mark.parametrize(
    ("pauses_s", "until_s"),
    [((), SERVED_LATELY_S), ((4.0,), PAUSES * 4.0), ((LONGEST_PAUSE_S + 1.0,), SERVED_LATELY_S)],
    ids=["served once", "after a pause, for a few of them", "after one too long to count"],
)
def test_a_rest_ends_when_nobody_is_served_any_more(pauses_s: tuple[float, ...], until_s: float) -> None:
    clock = Clock()
    lock = ComputeLock(clock)
    turns = TrainingTurns(lock, clock=clock, sleep=clock.pass_s)
    with lock.serving():
        pass
    for pause_s in pauses_s:
        clock.pass_s(pause_s)
        with lock.serving():
            pass
    with turns.turn(0.01):
        clock.pass_s(0.5)  # owes a rest of 49.5 s
    with turns.turn(0.01):
        pass
    assert clock.now_s == pytest.approx(sum(pauses_s) + until_s, abs=0.05)


def test_what_holds_the_lock_without_serving_anybody_makes_no_rests() -> None:
    """Such as the signs of life that an idle braid gives, and the eviction of sessions."""
    clock = Clock()
    lock = ComputeLock(clock)
    turns = TrainingTurns(lock, clock=clock, sleep=clock.pass_s)
    for _ in range(20):
        with turns.turn(0.1):
            clock.pass_s(4.0)
        with lock:
            pass
    assert clock.now_s == 80.0


def test_a_turn_that_fails_leaves_the_lock() -> None:
    lock = ComputeLock()
    turns = TrainingTurns(lock)
    with pytest.raises(ValueError, match="broken"), turns.turn(0.5):
        raise ValueError("broken")
    assert not lock.locked()
    with turns.turn(0.5):
        pass
