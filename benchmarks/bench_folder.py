"""Extraction from a folder of photos, against the bound that the cores set.

The bound is cores / (decode + resize + hash + forward), each in core-seconds an image: what the
machine would do if every core did nothing else. It is measured in two ways, in turn with the
extraction: each stage alone on one thread, by processor time, the other cores idle; and all four in
a process on every core at once, by the clock, so that the cores share caches and memory, and lose
what the machine takes from them, as they do in any real run. The extraction runs by threads and by
worker processes. Photos are taken several times over, each copy under a digest of its own, so that
starting and finishing count for as little as they do for a user with many.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
from harness import Report, Side, alternate, arguments, ratio

from data_cache.cache import FeatureCache
from data_cache.cores import n_cores
from extract.backbones import get_backbone
from extract.decode import decode
from extract.engines import choose_engine
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing, preprocess
from extract.sources import Source, open_source
from extract.sources.base import content_digest
from extract.weights import find_weights
from extract.workers import pool

TOLERANCE = 1e-5
GO = "go"
ALONE = "bound, stages alone"
EVERY_CORE = "bound, every core at once"
PHOTOS = Path(__file__).parent.parent.parent / "shared" / "data" / "cats_dogs"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=PHOTOS, help="of photos")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--copies", type=int, default=8, help="of each photo (default 8)")
    options = parser.parse_args()
    report = Report(f"extraction from JPEG files at {options.image_size} pixels")
    print(report.title)

    with tempfile.TemporaryDirectory() as folder:
        run(copied(options.folder, Path(folder), options.copies), options, report)
    report.write(options.json)


def copied(photos: Path, folder: Path, n_copies: int) -> Path:
    """Copy photos several times, with bytes at the end that no decoder reads; return where."""
    for path in [one for one in photos.rglob("*") if one.is_file()]:
        data = path.read_bytes()
        for k in range(n_copies):
            copy = folder / path.relative_to(photos).with_stem(f"{path.stem}_{k:03d}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data + k.to_bytes(2, "big"))
    return folder


class Stages:
    """What the pipeline does to each image, a stage at a time, on one thread.

    Attributes
    ----------
    features : (n, d) float32, those of the last :meth:`forward`
    """

    def __init__(self, raw: list[bytes], options: argparse.Namespace) -> None:
        side = options.image_size
        backbone = get_backbone("mobilenet_v2")
        self._engine = choose_engine(
            "auto", backbone, find_weights("imagenet", backbone, side), side
        )
        self._preprocessing = Preprocessing(backbone.scaling, side)
        self._batch_size = options.batch
        self._raw = raw
        self._pixels = [decode(data) for data in raw]
        self._images = np.empty((len(raw), side, side, 3), np.float32)
        self.resize()
        self.forward()

    def decode(self) -> None:
        """Decode every file."""
        for data in self._raw:
            decode(data)

    def resize(self) -> None:
        """Bring every decoded image to the backbone's size and scale."""
        for n, pixels in enumerate(self._pixels):
            preprocess(pixels[None], self._preprocessing, self._images[n : n + 1])

    def hash(self) -> None:
        """Digest every file."""
        for data in self._raw:
            content_digest(data)

    def forward(self) -> None:
        """Take every scaled image through the backbone, and keep the features."""
        parts = range(0, len(self._images), self._batch_size)
        self.features = np.concatenate(
            [self._engine(self._images[at : at + self._batch_size]) for at in parts]
        )

    def whole(self) -> np.ndarray:
        """Take every file through all stages, a batch after the other; return the features."""
        features = []
        for at in range(0, len(self._raw), self._batch_size):
            raw = self._raw[at : at + self._batch_size]
            images = np.empty((len(raw), *self._images.shape[1:]), np.float32)
            for n, data in enumerate(raw):
                content_digest(data)
                preprocess(decode(data)[None], self._preprocessing, images[n : n + 1])
            features.append(self._engine(images))
        return np.concatenate(features)

    def sides(self) -> dict[str, Side]:
        """Return what measures each stage, in seconds of its thread."""
        return {
            work.__name__: timed(work)
            for work in (self.decode, self.resize, self.hash, self.forward)
        }


def timed(work: Callable[[], None]) -> Side:
    """Return what does some work and tells the processor time that its thread took."""

    def once() -> float:
        start = time.thread_time()
        work()
        return time.thread_time() - start

    return once


class EveryCore:
    """A process on every core, which has a share of the files and takes it through all stages.

    They repeat their share ``n_times``, so that waiting for the last of them counts for little.
    """

    def __init__(self, raw: list[bytes], options: argparse.Namespace, n_times: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._n_times = n_times
        self._connections = []
        for core in range(n_cores()):
            ours, theirs = context.Pipe()
            share = raw[core :: n_cores()]
            context.Process(
                target=take_share, args=(theirs, share, options, n_times), daemon=True
            ).start()
            self._connections.append(ours)
        for connection in self._connections:
            connection.recv()

    def once(self) -> float:
        """Let all of them work, and tell the seconds for one time all files."""
        start = time.perf_counter()
        for connection in self._connections:
            connection.send(GO)
        self.shares = [connection.recv() for connection in self._connections]
        return (time.perf_counter() - start) / self._n_times

    def check(self, alone: np.ndarray) -> None:
        """See that the features are those of the stages alone."""
        for core, share in enumerate(self.shares):
            check(share, alone[core :: n_cores()])


def take_share(
    connection: Connection, raw: list[bytes], options: argparse.Namespace, n_times: int
) -> None:
    """Be one of the processes: answer each message with the features."""
    stages = Stages(raw, options)
    connection.send(GO)
    with suppress(EOFError):  # the other side is done
        while connection.recv():
            for _ in range(n_times):
                features = stages.whole()
            connection.send(features)


def whole_job(
    source: Source, options: argparse.Namespace, stages: Stages, fewest_images: int
) -> Side:
    """Return what extracts every image, and tells the seconds for as many as the stages have.

    Worker processes are used from ``fewest_images`` for each on.
    """

    def extract() -> float:
        pool.FEWEST_IMAGES, pool.FEWEST_CORES = fewest_images, 2
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.h5"
            done = extract_features(source, path, ExtractionOptions(image_size=options.image_size))
            with FeatureCache.open(path) as cache:
                features = [cache.features(split) for split in source.manifest.splits]
        check(np.concatenate(features)[:: options.copies], stages.features)
        return done.seconds / options.copies

    return extract


def check(features: np.ndarray, alone: np.ndarray) -> None:
    """See that the features of a cache are those of the stages alone."""
    error = np.abs(features - alone).max() / np.abs(alone).max()
    assert error < TOLERANCE, error


def run(folder: Path, options: argparse.Namespace, report: Report) -> None:
    """Measure both sides and the stages, and report."""
    source = open_source(str(folder))
    rows = [
        (split, row) for split, part in source.manifest.splits.items() for row in range(len(part))
    ][:: options.copies]
    raw = [source.fetch(*position) for position in rows]
    stages, every_core = Stages(raw, options), EveryCore(raw, options, options.copies)
    parts = stages.sides()
    jobs = {
        "headstart, threads": whole_job(source, options, stages, len(source.manifest)),
        "headstart, worker processes": whole_job(source, options, stages, 1),
    }
    seconds = alternate({**jobs, **parts, EVERY_CORE: every_core.once}, options.rounds)
    every_core.check(stages.features)
    print(f"  features agree within {TOLERANCE:g} of the largest")
    for name in parts:
        report.add(f"{name}, core-milliseconds an image", 1000 * median(seconds[name]) / len(rows))
    seconds[ALONE] = [
        sum(turn) / n_cores() for turn in zip(*(seconds[one] for one in parts), strict=True)
    ]
    for name in (ALONE, EVERY_CORE, *jobs):
        report.add(name, len(rows) / median(seconds[name]), "images/s")
    for name in jobs:
        for bound in (ALONE, EVERY_CORE):
            report.add(f"{name} / {bound}", ratio(seconds[bound], seconds[name]), "x")


if __name__ == "__main__":
    main()
