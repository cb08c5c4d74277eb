"""Who may prepare images, and who runs the engine: as many at once as keep all threads busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from extract import turns as module
from extract.turns import Turns


class Clock:
    """A clock that only a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def spend(clock: Clock, turn: Callable[[], AbstractContextManager[None]], seconds: float) -> None:
    """Take a turn that lasts so long."""
    with turn():
        clock.now += seconds


def most_at_once(turns: Turns, *, preparing: float, running: float, n_threads: int) -> int:
    """Let threads take 40 chunks through both turns; return how many prepared at the same time."""
    n_now, most, lock = 0, [0], threading.Lock()

    def take(_chunk: int) -> None:
        nonlocal n_now
        with turns.preparing():
            with lock:
                n_now += 1
                most.append(n_now)
            time.sleep(preparing)
            with lock:
                n_now -= 1
        with turns.running():
            time.sleep(running)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(take, range(40)))
    return max(most)


@pytest.mark.parametrize(
    ("n_threads", "preparing", "running", "expected"),
    [
        (2, 1.2, 1.9, 1),  # photos of 50 kilopixels at 96 pixels
        (2, 60.0, 2.0, 2),  # photos of 12 megapixels
        (4, 1.2, 1.9, 2),
        (8, 1.0, 1.0, 4),
        (16, 24.0, 0.5, 16),
        (16, 0.1, 100.0, 1),
        (1, 5.0, 1.0, 1),
    ],
)
def test_so_many_prepare_as_keep_all_threads_busy(
    n_threads: int, preparing: float, running: float, expected: int, clock: Clock
) -> None:
    turns = Turns(n_threads, n_threads)
    for _ in range(3):
        spend(clock, turns.preparing, preparing)
        spend(clock, turns.running, running)
    assert turns.n_may_prepare == expected


@pytest.mark.parametrize(("n_threads", "expected"), [(1, 1), (2, 1), (3, 2), (16, 8)])
def test_half_may_prepare_before_anything_is_known(n_threads: int, expected: int) -> None:
    assert Turns(n_threads, 1).n_may_prepare == expected


def test_other_images_are_noticed_after_some_chunks(clock: Clock) -> None:
    turns = Turns(8, 8)
    for _ in range(50):
        spend(clock, turns.preparing, 1.0)
        spend(clock, turns.running, 9.0)
    assert turns.n_may_prepare == 1
    for _ in range(20):
        spend(clock, turns.preparing, 100.0)
        spend(clock, turns.running, 9.0)
    assert turns.n_may_prepare == 8


def test_without_any_engine_all_prepare(clock: Clock) -> None:
    turns = Turns(4, 1)
    spend(clock, turns.preparing, 1.0)
    spend(clock, turns.running, 0.0)
    assert turns.n_may_prepare == 4


def test_one_prepares_while_others_are_in_the_engine() -> None:
    assert most_at_once(Turns(2, 2), preparing=0.001, running=0.01, n_threads=2) == 1


def test_all_prepare_at_once_where_that_takes_longest() -> None:
    assert most_at_once(Turns(3, 3), preparing=0.01, running=0.0, n_threads=3) == 3


def test_failure_gives_every_turn_back() -> None:
    turns = Turns(1, 1)
    for turn in (turns.preparing, turns.running) * 3:
        with pytest.raises(KeyError), turn():
            raise KeyError
    assert most_at_once(turns, preparing=0.0, running=0.0, n_threads=1) == 1
