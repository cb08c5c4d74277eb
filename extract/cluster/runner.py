"""The driver's side: hands out tasks a few at a time, takes in the shards that come of them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from data_cache.connecting import connected, n_local_workers
from data_cache.console import say, warn
from data_cache.errors import ClusterError, HeadstartError
from data_cache.layout import parts_folder
from data_cache.update import CacheUpdate
from extract.cluster.task import (
    TOPIC,
    Making,
    Receipt,
    WorkerEngine,
    WorkerJob,
    extract_shard,
    load_engine,
    package_version,
    why_unfit,
)
from extract.extraction import Job, Step
from extract.extractor import WeightsChoice
from extract.onnx_backbone import OnnxBackbone
from extract.pipeline import Position, Profile
from extract.sources import Source
from extract.workers.images import TaskImages, opening_of, task_images

_N_RETRIES = 5
_TASKS_AHEAD_PER_THREAD = 2
_TASKS_PER_THREAD = 8
_FEWEST_ROWS = 128
_PATIENCE_SECONDS = 2.0


class ClusterRunner:
    """The workers of a cluster; see :class:`extract.extraction.Runner`."""

    def __init__(self, client: Any, source: Source, job: WorkerJob, n_rows: int) -> None:
        """Look at the workers, and load the backbone on one of each machine.

        Parameters
        ----------
        client : a ``distributed.Client``
        source : one that :func:`extract.workers.images.opening_of` takes
        job : what is the same for all tasks
        n_rows : the most rows of a shard

        Raises
        ------
        ClusterError
            A worker is not like this process.
        """
        self._client = client
        self._source = source
        self._job = job
        self._n_rows = n_rows
        self._n_resubmitted = 0
        self._starts: Counter[str] = Counter()
        self._workers = _Workers(client)
        self._refuse_unfit()
        found = self._load_engines()
        self.engine = found.name
        self.n_features = found.n_features
        self.profile = Profile()
        client.subscribe_topic(TOPIC, self._count_start)

    def label(self) -> str:
        """Return what the progress bar says."""
        words = f"extracting on {_count(self._workers.n_workers, 'worker')}"
        return words + (f", {self.n_retries:,} retried" if self.n_retries else "")

    @property
    def n_retries(self) -> int:
        """How often a task was begun again."""
        return sum(self._starts.values()) - len(self._starts) + self._n_resubmitted

    def run(self, positions: Iterator[Position], update: CacheUpdate) -> Generator[Step]:
        """Extract the images at ``positions`` into the update; yield a step for each shard.

        A few tasks for each thread of the cluster are handed out at a time, so neither the
        scheduler nor this process holds more, however large the source.

        Raises
        ------
        ClusterError
            The workers, or the scheduler, are lost for good.
        """
        tasks = self._tasks(positions)
        queue = _Queue(self._client, self._job)
        try:
            for task in itertools.islice(tasks, self._n_ahead()):
                queue.put(task)
            while len(queue):
                receipt = self._next(queue)
                if receipt is None:
                    continue
                if receipt.shard:
                    update.adopt(receipt.shard, receipt.digest)
                for stage, seconds in receipt.seconds.items():
                    self.profile.add(stage, seconds)
                for task in itertools.islice(tasks, max(0, self._n_ahead() - len(queue))):
                    queue.put(task)
                yield Step(receipt.n_images, receipt.bad_images)
        finally:
            queue.cancel()
            self._client.unsubscribe_topic(TOPIC)
        say(f"{self.label()}: done")

    def _next(self, queue: _Queue) -> Receipt | None:
        """Return the next receipt; None where there is none yet."""
        self._workers.look()
        if self._client.status not in {"running", "connecting"}:
            raise ClusterError(
                "the connection to the Dask scheduler was lost: run the same command again, which "
                "goes on from what is finished"
            )
        found = queue.take()
        if isinstance(found, TaskImages):
            self._n_resubmitted += 1
            queue.put(found)
            return None
        return found

    def _tasks(self, positions: Iterator[Position]) -> Iterator[TaskImages]:
        """Cut positions into tasks of one shard each."""
        while rows := list(itertools.islice(positions, self._n_rows)):
            yield task_images(self._source, rows)

    def _n_ahead(self) -> int:
        """Return how many tasks may be handed out at a time."""
        return max(1, self._workers.n_threads) * _TASKS_AHEAD_PER_THREAD + 1

    def _count_start(self, event: tuple[float, str]) -> None:
        """Take note that a worker began a task."""
        self._starts[event[1]] += 1

    def _load_engines(self) -> WorkerEngine:
        """Load the engine on one worker of each machine, where it may be converted, then on all."""
        found: list[WorkerEngine] = []
        firsts = self._workers.one_a_host()
        for addresses in (firsts, self._workers.addresses - firsts):
            futures = [
                self._client.submit(
                    load_engine, self._job, workers=[one], allow_other_workers=True, pure=False
                )
                for one in addresses
            ]
            found += _called(self._client.gather, futures)
        return found[0]

    def _refuse_unfit(self) -> None:
        """Raise :class:`ClusterError` if a worker is not like this process."""
        for address, reason in _called(self._client.run, why_unfit, self._job).items():
            if reason:
                raise ClusterError(f"the worker {address} cannot be used: {reason}")


class _Workers:
    """How many workers and threads the cluster has, asked again every second or so."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._threads: dict[str, int] = {}
        self._asked = -_PATIENCE_SECONDS
        self._was_empty = False
        client.wait_for_workers(1, timeout=60)
        self.look()

    @property
    def n_workers(self) -> int:
        """How many there are."""
        return len(self._threads)

    @property
    def n_threads(self) -> int:
        """How many threads they have together."""
        return sum(self._threads.values())

    @property
    def addresses(self) -> set[str]:
        """Return the address of every worker."""
        return set(self._threads)

    def one_a_host(self) -> set[str]:
        """Return the address of one worker of each machine."""
        return set({address.rpartition(":")[0]: address for address in self._threads}.values())

    def look(self) -> None:
        """Ask again if that was a while ago; warn where there are none."""
        now = time.monotonic()
        if now - self._asked < _PATIENCE_SECONDS or self._client.status != "running":
            return
        self._asked = now
        with suppress(OSError):  # the connection may be broken by now, which shows soon
            self._threads = dict(self._client.nthreads())
        if not self._threads and not self._was_empty:
            warn("the cluster has no worker at the moment: waiting for one")
        self._was_empty = not self._threads


class _Queue:
    """The tasks that are handed out, and what comes back of them."""

    def __init__(self, client: Any, job: WorkerJob) -> None:
        self._client = client
        self._job = job
        self._tasks: dict[str, tuple[Any, TaskImages]] = {}
        self._done: SimpleQueue[str] = SimpleQueue()
        self._n_losses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def put(self, images: TaskImages) -> None:
        """Hand out a task."""
        future = self._client.submit(
            extract_shard, self._job, images, pure=False, retries=_N_RETRIES
        )
        self._tasks[future.key] = (future, images)
        future.add_done_callback(lambda done: self._done.put(done.key))

    def take(self) -> Receipt | TaskImages | None:
        """Wait a little for a task to end; return its receipt, or its images if it was lost.

        Raises
        ------
        ClusterError
            It ended its workers, or was lost, too often; or failed in an unforeseen way.
        HeadstartError
            It failed as an extraction without a cluster would.
        """
        try:
            key = self._done.get(timeout=_PATIENCE_SECONDS)
        except Empty:
            return None
        if key not in self._tasks:
            return None
        future, images = self._tasks.pop(key)
        if future.status == "finished":
            receipt: Receipt = future.result()
            return receipt
        if future.status == "error":
            raise _failure(future.exception(), images)
        self._n_losses[images.ids[0]] += 1
        if self._n_losses[images.ids[0]] > _N_RETRIES:
            raise ClusterError(
                f"the images from {images.ids[0]} on were lost {_N_RETRIES + 1} times with the "
                "connection to the scheduler: run the same command again"
            )
        return images

    def cancel(self) -> None:
        """Call back what is not done."""
        futures = [future for future, _ in self._tasks.values()]
        self._tasks.clear()
        if futures and self._client.status == "running":
            with suppress(OSError):  # a scheduler that is gone has forgotten them already
                self._client.cancel(futures, force=True)


@contextmanager
def started(job: Job, cluster: str, update: CacheUpdate, n_missing: int) -> Iterator[ClusterRunner]:
    """Connect to a cluster, or start it, and see that it can do a job; see ``--cluster``.

    Raises
    ------
    SourceError
        The workers cannot open the source.
    ClusterError
        The cluster cannot be reached, or a worker is not like this process.
    """
    opening = opening_of(job.source)
    if n_local_workers(cluster) is not None:
        job.extractor.start_engine(job.options.engine)  # converts the backbone once, not N times
    making = Making(
        job.extractor.recipe,
        _weights_choice(job),
        job.options.engine,
        job.options.batch_size,
        opening,
    )
    worker_job = WorkerJob(package_version(), making, update.path.absolute(), update.storage)
    with connected(cluster) as client:
        parts_folder(update.path).mkdir(parents=True, exist_ok=True)
        n_threads = max(1, sum(client.nthreads().values()))
        n_rows = rows_of_a_shard(n_missing, n_threads, update.options.shard_rows)
        yield ClusterRunner(client, job.source, worker_job, n_rows)
    if not update.options.is_shared:
        update.parts.clear_unfinished()


def rows_of_a_shard(n_missing: int, n_threads: int, most: int) -> int:
    """Return how many rows a task has: few enough that all threads end at about the same time."""
    n_rows = -(-n_missing // (n_threads * _TASKS_PER_THREAD))
    return min(max(n_rows, _FEWEST_ROWS), most)


def _weights_choice(job: Job) -> WeightsChoice:
    """Return where the workers find the weights: files by their absolute paths."""
    backbone, options = job.extractor.backbone, job.options
    weights = str(backbone.path) if isinstance(backbone, OnnxBackbone) else options.weights
    if Path(weights).exists():
        weights = str(Path(weights).absolute())
    return WeightsChoice(weights, options.preprocess.absolute() if options.preprocess else None)


def _called(ask: Callable[..., Any], *arguments: Any) -> Any:
    """Ask workers something by way of Dask; return what they say.

    Raises
    ------
    ClusterError
        A worker failed in an unforeseen way.
    """
    try:
        return ask(*arguments)
    except HeadstartError:
        raise
    except Exception as error:  # whatever a worker raises, such as that it lacks this package
        raise ClusterError(
            f"a worker of the cluster cannot be used ({type(error).__name__}: {error}): install "
            f"headstart {package_version()} there, with the same Python and Dask"
        ) from error


def _failure(error: BaseException, images: TaskImages) -> HeadstartError:
    """Return the error that ends a run whose task failed for good."""
    if isinstance(error, HeadstartError):
        return error
    what = f"{len(images):,} images from {images.ids[0]} on"
    if type(error).__name__ == "KilledWorker":
        return ClusterError(
            f"{what} ended one worker after another: is there too little memory? give the workers "
            "more, or fewer threads, and run the same command again"
        )
    return ClusterError(f"{what} failed: {type(error).__name__}: {error}")


def _count(n: int, noun: str) -> str:
    """Return ``1 worker`` or ``3 workers``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
