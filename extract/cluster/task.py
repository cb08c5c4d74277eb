"""What runs in a worker: one task makes one shard. TensorFlow is imported only for engine keras."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import ClusterError, HeadstartError
from data_cache.layout import Storage, parts_folder
from data_cache.locking import writing
from data_cache.recipe import Recipe
from data_cache.rows import BadImage
from data_cache.shards import write_shard
from data_cache.storage import as_stored
from extract.engines import Engine
from extract.extractor import Extractor, WeightsChoice, open_extractor
from extract.pipeline import BatchSizes, Pipeline, Profile
from extract.workers.images import Opening, ReadableImages, TaskImages

_LOADING = threading.Lock()
TOPIC = "headstart"
"""The topic of Dask's events under which every start of a task is told."""


@dataclass(frozen=True)
class Making:
    """What a worker loads once, for all tasks and for later runs of the same.

    Attributes
    ----------
    recipe, weights, engine, batch_size : what makes the features
    opening : how the source is opened
    """

    recipe: Recipe
    weights: WeightsChoice
    engine: str
    batch_size: int | None
    opening: Opening


@dataclass(frozen=True)
class WorkerJob:
    """What is the same for all tasks of a run.

    Attributes
    ----------
    version : of this package
    making : what makes the features
    output : the cache, an absolute path
    storage : how features are kept
    """

    version: str
    making: Making
    output: Path
    storage: Storage


@dataclass(frozen=True)
class Receipt:
    """What comes back of a task.

    Attributes
    ----------
    n_images : images that the task had
    shard, digest : the name of the shard that it wrote and the digest of its seal; empty for none
    bad_images : those that are left out of it
    seconds : core-seconds in each stage
    """

    n_images: int
    shard: str
    digest: str
    bad_images: tuple[BadImage, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class WorkerEngine:
    """What a worker says of the engine that it loaded."""

    name: str
    n_features: int


@dataclass(frozen=True)
class _Loaded:
    """What a worker process keeps from task to task."""

    extractor: Extractor
    engine: Engine
    read: Any
    sizes: BatchSizes


class _OneCallAtATime:
    """An engine that uses all threads in one call, shared by tasks that run side by side."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.name = engine.name
        self.n_features = engine.n_features
        self.n_concurrent = 1

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of a batch, after the calls of other tasks."""
        with self._lock:
            return self._engine(batch)


_LOADED: dict[Making, _Loaded] = {}


def package_version() -> str:
    """Return the version of this package."""
    return metadata.version("headstart")


def why_unfit(job: WorkerJob) -> str:
    """Say why this worker cannot do a job's tasks: what it has, and what the driver has.

    Empty where it can: the package, the weights and every step of the recipe are the same, and it
    sees the folder of the cache and the files of arrays.
    """
    if (here := package_version()) != job.version:
        return f"it has headstart {here}, and this process has {job.version}: install the same"
    if not parts_folder(job.output).is_dir():
        return f"it does not see {parts_folder(job.output)}: put the cache where all workers see it"
    try:
        open_extractor(job.making.recipe, job.making.weights)
        job.making.opening.open()
    except (HeadstartError, OSError) as error:
        return str(error)
    return ""


def load_engine(job: WorkerJob) -> WorkerEngine:
    """Load the engine in this worker, once for all tasks."""
    engine = _load(job).engine
    return WorkerEngine(engine.name, engine.n_features)


def extract_shard(job: WorkerJob, images: TaskImages) -> Receipt:
    """Take images through the backbone, and write their shard.

    Raises
    ------
    ClusterError
        This worker is not like the driver.
    CacheFullError, EngineError, ...
        As for an extraction without a cluster.
    """
    from distributed import get_worker

    get_worker().log_event(TOPIC, images.ids[0])
    loaded = _load(job)
    profile = Profile()
    pipeline = Pipeline(
        ReadableImages(images, loaded.read),
        loaded.extractor.decoding,
        loaded.extractor.preprocessing,
        loaded.engine,
        n_workers=1,
        profile=profile,
        sizes=loaded.sizes,
    )
    chunks = list(pipeline.run(images.positions()))
    content = np.concatenate([chunk.content for chunk in chunks])
    name = digest = ""
    if len(content):
        features = np.concatenate([chunk.features for chunk in chunks])
        with profile.stage("write"):
            name, digest = _write(job, content, features)
    bad_images = tuple(image for chunk in chunks for image in chunk.bad_images)
    return Receipt(len(images), name, digest, bad_images, dict(profile.seconds))


def _write(
    job: WorkerJob, content: NDArray[np.uint8], features: NDArray[np.float32]
) -> tuple[str, str]:
    """Write a shard; return its name and the digest of its seal."""
    as_stored(features, job.storage)
    with writing(job.output, content.nbytes + features.nbytes):
        shard = write_shard(
            parts_folder(job.output), job.making.recipe, content, features, job.storage
        )
    return shard.stored.path.name, shard.digest


def _load(job: WorkerJob) -> _Loaded:
    """Return the engine and all else that a job needs, loaded by the first task that asks.

    Raises
    ------
    ClusterError
        This worker is not like the driver: it may have joined after the others were looked at.
    """
    with _LOADING:
        if job.making not in _LOADED:
            if reason := why_unfit(job):
                raise ClusterError(f"a worker cannot be used: {reason}")
            _LOADED.clear()
            _LOADED[job.making] = _loaded(job.making)
        return _LOADED[job.making]


def _loaded(making: Making) -> _Loaded:
    """Load an engine, and open the source."""
    _match_threads()
    extractor = open_extractor(making.recipe, making.weights)
    with redirect_stderr(StringIO()):  # the driver says it once
        engine = extractor.start_engine(making.engine)
    if engine.n_concurrent == 1:
        engine = _OneCallAtATime(engine)
    return _Loaded(extractor, engine, making.opening.open(), BatchSizes(making.batch_size))


def _match_threads() -> None:
    """Have TensorFlow, should it be needed, use as many threads as the worker was given."""
    from distributed import get_worker

    n_threads = str(get_worker().state.nthreads)
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", n_threads)
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
