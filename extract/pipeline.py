"""The pipeline: images in, feature rows out, with every core busy and memory bounded.

The images are cut into chunks. Worker threads take a chunk each through all stages: read, hash,
decode, resize and scale, then the engine. Pillow, NumPy and the engines work outside Python's
global lock, so one thread decodes while another runs the backbone. An engine says how many calls it
takes at once: LiteRT and ONNX Runtime run one call on each core, Keras one call on all of them. For
many files the threads hand their chunks to worker processes (:mod:`extract.workers.pool`).

Chunks come out in the order they went in. Only so many wait as the taker of the results needs to
turn away for a while, to write a shard, without the threads standing still; memory does not grow
with the number of images.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_cache.cores import n_cores
from data_cache.errors import BadImageError, ImageUnavailableError
from data_cache.rows import BadImage
from extract.augment import View
from extract.decode import DecodeOptions, decode
from extract.engines import Engine
from extract.preprocess import Pixels, Preprocessing, preprocess
from extract.sources.base import Listed, Raw, content_digest
from extract.turns import Turns

Position = tuple[str, int]
"""A split and a row of it."""

CANDIDATE_BATCH_SIZES = (8, 16, 4, 2, 32)
"""What ``--batch-size auto`` tries; the first is used for a source too small to measure on."""

_IMAGES_A_TURN = 32
_N_TURNS = 3
_LEAST_GAIN = 0.1
_CHUNKS_AHEAD_PER_WORKER = 2
_BYTES_AHEAD = 16 << 20


Known = Callable[[bytes], NDArray[np.float32] | None]
"""Returns the features (d,) of a content digest that some cache holds, or None."""


class Images(Protocol):
    """What the pipeline needs of a source; each call is safe from many threads."""

    def fetch(self, split: str, row: int) -> Raw:
        """Return the image at a position; see :meth:`extract.sources.Source.fetch`."""

    def listed(self, split: str, row: int) -> Listed:
        """Return what is known of it beforehand; see :meth:`extract.sources.Source.listed`."""


@dataclass(frozen=True)
class Extracted:
    """A finished chunk of n images.

    Attributes
    ----------
    content : (m, 32) uint8, the SHA-256 of what was read
    features : (m, d) float32
    bad_images : the n - m images of the chunk that are left out, and why
    kept : (n,) bool, which images the rows are of
    """

    content: NDArray[np.uint8]
    features: NDArray[np.float32]
    bad_images: tuple[BadImage, ...]
    kept: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class _Prepared:
    """A chunk before the engine; see :class:`Extracted`.

    Attributes
    ----------
    batch : (k, S, S, 3) scaled images
    known : for each of the m images that are not bad, the features that it has already, or None:
        then the next of the batch is its image
    """

    batch: NDArray[np.float32]
    known: Sequence[NDArray[np.float32] | None]
    content: NDArray[np.uint8]
    bad_images: tuple[BadImage, ...]
    kept: NDArray[np.bool_]

    def extracted(self, features: NDArray[np.float32]) -> Extracted:
        """Return the finished chunk, with the features (k, d) of the batch."""
        merged = _merge(self.known, features)
        return Extracted(self.content, merged, self.bad_images, self.kept)


@dataclass(frozen=True)
class Worked:
    """A chunk that a worker process extracted, and the core-seconds that each stage took it."""

    extracted: Extracted
    seconds: Mapping[str, float]


class Workers(Protocol):
    """Processes that extract chunks for the threads of a pipeline."""

    def extract(self, chunk: Sequence[Position]) -> Worked | None:
        """Extract a chunk elsewhere; None where the thread has to do it. Safe from many threads."""


class Profile:
    """Core-seconds spent in each stage, summed over the threads; safe to add to from many."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def stage(self, name: str) -> Stage:
        """Add the processor time that this thread spends in the body of a ``with`` to a stage."""
        return Stage(self, name)

    def add(self, name: str, seconds: float) -> None:
        """Add to a stage."""
        with self._lock:
            self.seconds[name] += seconds


class Stage:
    """The body of a ``with``, whose processor time goes to a profile: every image has some."""

    __slots__ = ("_name", "_profile", "_start")

    def __init__(self, profile: Profile, name: str) -> None:
        self._profile = profile
        self._name = name

    def __enter__(self) -> None:
        self._start = time.thread_time()

    def __exit__(self, *_error: object) -> None:
        self._profile.add(self._name, time.thread_time() - self._start)


class BatchSizes:
    """Gives each chunk its size; measures the candidates on real work, so nothing is wasted.

    Every candidate gets three turns of 32 images. In the first the engine may still be starting. By
    the others the one is used from then on whose images took the least time in the median chunk;
    the first candidate, unless that gains 10%: what a chunk costs besides the engine is not
    measured. A size asked for by the user is used throughout.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        one_turn = [size for size in CANDIDATE_BATCH_SIZES for _ in range(_n_chunks_a_turn(size))]
        self._untried = deque(one_turn * _N_TURNS)
        self._measured: dict[int, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def next_size(self) -> int:
        """Return the size of the next chunk."""
        if self._fixed:
            return self._fixed
        with self._lock:
            return self._untried.popleft() if self._untried else self._best()

    @property
    def is_settled(self) -> bool:
        """Whether the next chunks all get one size."""
        with self._lock:
            return bool(self._fixed) or not self._untried

    def report(self, n_images: int, seconds: float) -> None:
        """Take note of how long the engine took for a batch."""
        with self._lock:
            measured = self._measured[n_images]
            if len(measured) < _N_TURNS * _n_chunks_a_turn(n_images):
                measured.append(seconds / n_images)

    def _best(self) -> int:
        """Return the candidate with the least time an image, as far as is known."""
        counted = {
            size: self._measured[size][_n_chunks_a_turn(size) :] for size in CANDIDATE_BATCH_SIZES
        }
        rated = {size: median(times) for size, times in counted.items() if times}
        first = CANDIDATE_BATCH_SIZES[0]
        best = min(rated, key=rated.__getitem__, default=first)
        is_clear = first not in rated or rated[best] < (1 - _LEAST_GAIN) * rated[first]
        return best if is_clear else first


def _n_chunks_a_turn(size: int) -> int:
    """Return how many chunks of a size make a candidate's turn."""
    return max(1, _IMAGES_A_TURN // size)


@dataclass(frozen=True)
class Pipeline:
    """The stages that every image goes through.

    Attributes
    ----------
    source : gives what was hashed: the bytes of a file, or the row of an array
    decoding, preprocessing : what becomes of it
    engine : the backbone
    batch_size : images in a chunk, or None to measure
    n_workers : threads that take chunks
    known : finds features that were extracted before; such images are read, but not decoded
    runs_ahead : finish chunks before they are taken, up to 16 MiB of features; else only a few, for
        a source that holds the images under way
    view : the random view of each image that is extracted instead of the image
    workers : processes that take chunks through the stages while the threads wait for them
    sizes : what has been measured of batch sizes by earlier runs; None starts anew
    """

    source: Images
    decoding: DecodeOptions
    preprocessing: Preprocessing
    engine: Engine
    batch_size: int | None = None
    n_workers: int = field(default_factory=n_cores)
    profile: Profile = field(default_factory=Profile)
    known: Known | None = None
    runs_ahead: bool = False
    sizes: BatchSizes | None = None
    view: View | None = None
    workers: Workers | None = None

    def run(self, positions: Iterator[Position]) -> Generator[Extracted]:
        """Yield the finished chunks of the images at ``positions``, in order.

        Closing the iterator, or an exception such as Ctrl-C, waits for the chunks under way and
        drops those that have not begun.
        """
        sizes = self.sizes or BatchSizes(self.batch_size)
        turns = Turns(self.n_workers, self.engine.n_concurrent)
        waiting: deque[Future[Extracted]] = deque()
        with ThreadPoolExecutor(self.n_workers, "extract") as pool:
            try:
                while chunk := list(islice(positions, sizes.next_size())):
                    waiting.append(pool.submit(self._take, chunk, sizes, turns))
                    n_ahead = self._n_ahead(sizes, len(chunk))
                    while waiting and (waiting[0].done() or len(waiting) >= n_ahead):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def extract_chunk(self, chunk: Sequence[Position]) -> Extracted:
        """Take one chunk through all stages, here and now."""
        return self._extract(chunk, BatchSizes(len(chunk)), Turns(1, 1))

    def _take(self, chunk: Sequence[Position], sizes: BatchSizes, turns: Turns) -> Extracted:
        """Have a chunk extracted: by a worker, where there is one, else by this thread."""
        worked = self.workers.extract(chunk) if self.workers else None
        if worked is None:
            return self._extract(chunk, sizes, turns)
        for stage, seconds in worked.seconds.items():
            self.profile.add(stage, seconds)
        if n_images := len(worked.extracted.features):
            sizes.report(n_images, worked.seconds["forward"])
        return worked.extracted

    def _n_ahead(self, sizes: BatchSizes, n_images: int) -> int:
        """Return how many chunks of so many images may be under way or wait to be taken."""
        least = self.n_workers * _CHUNKS_AHEAD_PER_WORKER
        if not self.runs_ahead or not sizes.is_settled:
            return least
        return max(least, _BYTES_AHEAD // (4 * n_images * self.engine.n_features))

    def _extract(self, chunk: Sequence[Position], sizes: BatchSizes, turns: Turns) -> Extracted:
        """Take a chunk through all stages."""
        with turns.preparing():
            prepared = self._prepare(chunk)
        if not len(prepared.batch):
            return prepared.extracted(np.empty((0, self.engine.n_features), np.float32))
        with turns.running():
            features = self._forward(prepared.batch, sizes)
        return prepared.extracted(features)

    def _prepare(self, chunk: Sequence[Position]) -> _Prepared:
        """Take a chunk through all stages before the engine."""
        batch = ScaledBatch(len(chunk), self.preprocessing, self.profile)
        contents: list[bytes] = []
        known: list[NDArray[np.float32] | None] = []
        bad_images: list[BadImage] = []
        kept = np.ones(len(chunk), bool)
        for i, position in enumerate(chunk):
            try:
                raw, content = self._read(position)
                row = self.known(content) if self.known else None
                if row is None:
                    batch.add(self._decode(raw, content))
                contents.append(content)
                known.append(row)
            except BadImageError as error:
                kept[i] = False
                bad_images.append(self._bad_image(position, error))
        content_rows = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32)
        return _Prepared(batch.finish(), known, content_rows, tuple(bad_images), kept)

    def _read(self, position: Position) -> tuple[Raw, bytes]:
        """Read one image, and see that it is the one that was listed; return its digest too."""
        with self.profile.stage("read"):
            raw = self.source.fetch(*position)
        with self.profile.stage("hash"):
            content = content_digest(raw)
        expected = self.source.listed(*position).content
        if expected is not None and content != expected:
            raise ImageUnavailableError("it was changed after it was listed: run again")
        return raw, content

    def _decode(self, raw: Raw, content: bytes) -> Pixels:
        """Decode one image."""
        with self.profile.stage("decode"):
            pixels = decode(raw, self.decoding)
            return self.view.of(pixels, content) if self.view else pixels

    def _forward(self, batch: NDArray[np.float32], sizes: BatchSizes) -> NDArray[np.float32]:
        """Run the engine, and note how long it took."""
        start, core_start = time.perf_counter(), time.thread_time()
        features = self.engine(batch)
        seconds, core_seconds = time.perf_counter() - start, time.thread_time() - core_start
        sizes.report(len(batch), seconds)
        uses_all_cores = self.engine.n_concurrent == 1
        self.profile.add("forward", seconds * self.n_workers if uses_all_cores else core_seconds)
        return features

    def _bad_image(self, position: Position, error: BadImageError) -> BadImage:
        """Return the entry of an image in the list of those left out."""
        name = self.source.listed(*position).id
        return BadImage(position[0], name, str(error), isinstance(error, ImageUnavailableError))


def _merge(
    known: Sequence[NDArray[np.float32] | None], fresh: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return a row for each of ``known``: what is None there comes from ``fresh``, in order."""
    if len(known) == len(fresh):
        return fresh
    rows = iter(fresh)
    return np.stack([next(rows) if row is None else row for row in known])


class ScaledBatch:
    """Up to ``size`` scaled images; small ones of one shape are scaled together, at half the cost.

    Large ones are scaled at once, so that only one is held decoded; so are floating-point ones,
    which scaling may refuse, each for itself.
    """

    def __init__(
        self, size: int, preprocessing: Preprocessing, profile: Profile | None = None
    ) -> None:
        side = preprocessing.image_size
        self._images = np.empty((size, side, side, 3), np.float32)
        self._n_scaled = 0
        self._waiting: list[NDArray[Any]] = []
        self._preprocessing = preprocessing
        self._profile = profile or Profile()

    def add(self, pixels: Pixels) -> None:
        """Take a decoded image; raise :class:`BadImageError` if its values are out of range."""
        if self._waiting and self._waiting[0].shape != pixels.shape:
            self._scale()
        can_wait = pixels.dtype == np.uint8 and pixels.size <= self._images[0].size
        if not can_wait:
            self._scale()
        self._waiting.append(pixels)
        if not can_wait:
            self._scale()

    def finish(self) -> NDArray[np.float32]:
        """Return all images that were added, (m, S, S, 3)."""
        self._scale()
        return self._images[: self._n_scaled]

    def _scale(self) -> None:
        """Scale the images that wait."""
        if not self._waiting:
            return
        first, *others = self._waiting
        pixels: Pixels = np.stack(self._waiting) if others else first[None]
        self._waiting.clear()
        rows = slice(self._n_scaled, self._n_scaled + len(pixels))
        with self._profile.stage("resize"):
            preprocess(pixels, self._preprocessing, out=self._images[rows])
        self._n_scaled = rows.stop
