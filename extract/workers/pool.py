"""Worker processes of this machine, for images that take long to decode.

Threads take turns with Python's global lock, for every call into Pillow and NumPy: the more cores,
the longer the queue. A process has a lock of its own. Each thread of the pipeline sends its chunk
to a worker and waits; until the first worker is ready, and where one is lost, the threads do the
work themselves.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np

from data_cache.console import warn
from data_cache.cores import n_cores
from data_cache.memory import available_bytes
from extract.convert import TOLERANCE, relative_error
from extract.pipeline import Pipeline, Position, Worked
from extract.sources import FileSource, Source
from extract.workers.images import opening_of, task_images
from extract.workers.process import Stages, probe

FEWEST_IMAGES = 2_000
"""So many images for each worker, at least: fewer are done before starting it has paid off."""

FEWEST_CORES = 4
"""On two cores, workers were measured at 0.93 to 1.09 of the rate of threads: not worth it."""

_BYTES_OF_A_WORKER = 500 << 20
_SECONDS_TO_END = 2.0
_START = (
    "import json, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "descriptor, sys.path[:] = int(sys.argv[1]), json.loads(sys.argv[2])\n"
    "from extract.workers.process import main\n"
    "main(descriptor)\n"
)
"""The program of a worker. It finds modules where this process does, once it has started: not by
``PYTHONPATH``, whose folders come before the standard library, and which splits them at colons."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerProcess:
    """One process, and the socket to it; used by one thread at a time."""

    def __init__(self, stages: Stages) -> None:
        """Start it; it is not ready yet. Raise ``OSError`` where the system does not let it."""
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            self.process = _start(theirs.fileno())
        try:
            self.send(stages)
        except OSError:
            self.end()
            raise

    @property
    def has_answer(self) -> bool:
        """Whether :meth:`answer` would not wait."""
        return self._connection.poll()

    def send(self, message: object) -> None:
        """Send what the worker is to answer; raise ``OSError`` where it is gone."""
        self._connection.send(message)

    def answer(self) -> object:
        """Wait for an answer; raise ``EOFError`` or ``OSError`` where the worker is gone."""
        return self._connection.recv()

    def end(self) -> int:
        """End it, by force where it does not end by itself, and return its exit code."""
        self._connection.close()
        self.process.terminate()
        try:
            return self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class WorkerProcesses:
    """Worker processes that are ready, or starting; see :class:`extract.pipeline.Workers`."""

    def __init__(self, source: Source, stages: Stages, n_workers: int) -> None:
        """Start ``n_workers`` processes, which read the images of ``source`` themselves."""
        self._source = source
        self._expected = stages.engine(probe(stages.preprocessing.image_size))
        self._lock = threading.Lock()
        self._starting = list(_started(stages, n_workers))
        self._idle: deque[WorkerProcess] = deque()

    def extract(self, chunk: Sequence[Position]) -> Worked | None:
        """Have a worker extract a chunk; None where none is free, or where it was lost."""
        worker = self._take()
        if worker is None:
            return None
        try:
            worker.send(task_images(self._source, chunk))
            worked = worker.answer()
        except (EOFError, OSError):
            worked = "it ended"
        if not isinstance(worked, Worked):
            _lose(worker, worked)
            return None
        self._idle.append(worker)
        return worked

    def close(self) -> None:
        """End all workers; no thread may be waiting for one."""
        with self._lock:
            for worker in (*self._starting, *self._idle):
                worker.end()
            self._starting.clear()
            self._idle.clear()

    def _take(self) -> WorkerProcess | None:
        """Return a worker that is ready, after a look at those that were starting."""
        with self._lock:
            for worker in [one for one in self._starting if one.has_answer]:
                self._starting.remove(worker)
                self._admit(worker)
            return self._idle.popleft() if self._idle else None

    def _admit(self, worker: WorkerProcess) -> None:
        """Let a worker work whose features of the probe are this process's; end any other."""
        try:
            found = worker.answer()
        except (EOFError, OSError):
            found = "it ended"
        if not isinstance(found, np.ndarray):
            _lose(worker, found)
        elif not relative_error(found, self._expected) <= TOLERANCE:
            _lose(worker, "its features are not those of this process")
        else:
            self._idle.append(worker)


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a process that speaks over a socket; in a session of its own, as Ctrl-C is for us."""
    paths = json.dumps([path for path in sys.path if isinstance(path, str)])
    return subprocess.Popen(  # noqa: S603 (this Python, with a program that is written here)
        [sys.executable, "-P", "-c", _START, str(descriptor), paths],
        env={**os.environ, **_ONE_THREAD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,
    )


def _started(stages: Stages, n_workers: int) -> Iterator[WorkerProcess]:
    """Yield workers that were started: fewer, with a warning, where the system allows no more."""
    for number in range(n_workers):
        try:
            yield WorkerProcess(stages)
        except OSError as error:
            warn(f"{number} of {n_workers} worker processes were started ({error}): going on so")
            return


def _lose(worker: WorkerProcess, reason: object) -> None:
    """End a worker and warn of it."""
    code = worker.end()
    warn(f"a worker process is lost ({reason}; exit code {code}): going on without it, more slowly")


@contextmanager
def worker_processes(
    source: Source, pipeline: Pipeline, n_missing: int
) -> Iterator[WorkerProcesses | None]:
    """Start a worker for each core while the body runs, where ``n_missing`` images are worth it."""
    n_workers = n_cores()
    if not _is_worth_it(source, pipeline, n_missing, n_workers):
        yield None
        return
    stages = Stages(opening_of(source), pipeline.decoding, pipeline.preprocessing, pipeline.engine)
    workers = WorkerProcesses(source, stages, n_workers)
    try:
        yield workers
    finally:
        workers.close()


def _is_worth_it(source: Source, pipeline: Pipeline, n_missing: int, n_workers: int) -> bool:
    """Tell whether processes are faster than threads: for many files, and cores to spare."""
    return (
        os.name == "posix"
        and bool(sys.executable)
        and not hasattr(sys, "frozen")  # a program that holds Python: it would start itself
        and isinstance(source, FileSource)
        and pipeline.view is None
        and pipeline.engine.n_concurrent > 1
        and n_workers >= FEWEST_CORES
        and n_missing >= FEWEST_IMAGES * n_workers
        and available_bytes() > _BYTES_OF_A_WORKER * n_workers
    )
