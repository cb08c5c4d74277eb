"""What an extraction would take, before it is begun: images, shards, room and time.

The time is measured on a few of the images themselves, taken through the whole pipeline here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from data_cache.cores import n_cores
from data_cache.layout import Storage
from data_cache.rows import Manifest
from data_cache.update import CacheUpdate
from extract.extraction import ExtractionOptions, Job, decide
from extract.pipeline import Pipeline, Position
from extract.sources import Source

_SAMPLE_SECONDS = 3.0
_SAMPLE_IMAGES = 512
_MEGABYTE = 1e6
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Estimate:
    """What an extraction would take.

    Attributes
    ----------
    news : in words, how the source differs from the cache
    n_rows, n_missing : rows in the source, and images that would go through the backbone
    n_shards : shards that would be written
    n_bytes : of the bound cache, before compression
    rate : images a second, measured here; 0 where nothing is missing
    n_sampled : images that were measured
    n_threads_here, n_threads : threads that measured, and that would work
    """

    news: str
    n_rows: int
    n_missing: int
    n_shards: int = 0
    n_bytes: int = 0
    rate: float = 0.0
    n_sampled: int = 0
    n_threads_here: int = 1
    n_threads: int = 1

    @property
    def seconds(self) -> float:
        """How long it would take, start-up and binding aside."""
        if not self.n_missing:
            return 0.0
        return self.n_missing / self.rate * self.n_threads_here / self.n_threads

    def lines(self) -> list[str]:
        """Say it in lines."""
        lines = [self.news, f"images   {self.n_missing:,} to extract, of {self.n_rows:,}"]
        if not self.n_missing:
            return lines
        return [
            *lines,
            f"shards   {self.n_shards:,}",
            f"on disk  {self.n_bytes / _MEGABYTE:,.1f} MB, and the shards until they are bound",
            f"time     about {_duration(self.seconds)} on {self.n_threads:,} threads: "
            f"{self.rate:,.0f} images/s here on {self.n_threads_here:,}, measured on "
            f"{self.n_sampled:,} images",
        ]


def estimate(source: Source, output: Path, options: ExtractionOptions) -> Estimate:
    """Say what :func:`extract.extraction.extract_features` would take; nothing is written.

    Of a cluster only the number of threads is asked; none is started. Raises as an extraction does
    when it begins.
    """
    job = decide(source, options)
    part = source.part.part if source.part else None
    with CacheUpdate.begin(
        output,
        job.extractor.recipe,
        job.provenance(""),
        overwrite=options.overwrite,
        options=replace(options.update, part=part, plan_only=True),
    ) as update:
        plan = update.plan(source.manifest, source.unreadable)
        found = Estimate(plan.summary(), len(source.manifest), plan.n_missing)
        if not plan.n_missing:
            return found
        return _measured(job, found, plan.positions(), update.storage)


def _measured(
    job: Job, found: Estimate, positions: Iterator[Position], storage: Storage
) -> Estimate:
    """Return an estimate with what was measured."""
    pipeline = job.pipeline()
    step = max(1, found.n_missing // _SAMPLE_IMAGES)
    n_sampled, rate = _rate(pipeline, islice(positions, 0, None, step))
    n_threads = _n_threads(job.options.cluster)
    most = job.options.update.shard_rows
    if job.options.cluster is None:
        n_shard_rows = min(most, max(1.0, rate * job.options.update.shard_seconds))
    else:
        from extract.cluster.runner import rows_of_a_shard

        n_shard_rows = rows_of_a_shard(found.n_missing, n_threads, most)
    return replace(
        found,
        n_shards=math.ceil(found.n_missing / n_shard_rows),
        n_bytes=_n_bytes(job.source.manifest, pipeline.engine.n_features, storage),
        rate=rate,
        n_sampled=n_sampled,
        n_threads_here=pipeline.n_workers,
        n_threads=n_threads,
    )


def _rate(pipeline: Pipeline, positions: Iterator[Position]) -> tuple[int, float]:
    """Return how many images were taken through the pipeline, and how many a second that is.

    The first chunk, in which everything is slower, does not count where others follow.
    """
    begun = time.perf_counter()
    sample = _until(positions, begun + _SAMPLE_SECONDS)
    done = [(len(chunk), time.perf_counter()) for chunk in pipeline.run(sample)]
    started = done[0][1] if done[1:] else begun
    n_images = sum(n for n, _ in done[1:] or done)
    return n_images, n_images / (done[-1][1] - started)


def _until(positions: Iterator[Position], end: float) -> Iterator[Position]:
    """Yield positions, one at least, until the clock says ``end``."""
    for position in positions:
        yield position
        if time.perf_counter() > end:
            return


def _n_threads(cluster: str | None) -> int:
    """Return how many threads would work."""
    if cluster is None:
        return n_cores()
    from data_cache.connecting import connected, n_local_threads, n_local_workers

    n_workers = n_local_workers(cluster)
    if n_workers is not None:
        return min(n_workers * n_local_threads(n_workers), n_cores())
    with connected(cluster) as client:
        return max(1, sum(client.nthreads().values()))


def _n_bytes(manifest: Manifest, n_features: int, storage: Storage) -> int:
    """Return about how large the bound cache of a manifest is, before compression."""
    row = np.dtype(storage.dtype).itemsize * n_features
    return sum(
        len(rows) * row + rows.ids.nbytes + rows.labels.nbytes + rows.content.nbytes
        for rows in manifest.splits.values()
    )


def _duration(seconds: float) -> str:
    """Return ``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 2 * _MINUTE:
        return f"{math.ceil(seconds)} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:,.1f} h"
