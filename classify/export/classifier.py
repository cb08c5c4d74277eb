"""Classify new images with an exported file, in its own runtime: pixels in, probabilities out.

Worker threads take a few images each, decode them, and run the file on those of one size together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.export.description import Described
from classify.export.formats import Format, Runner
from classify.export.images import as_rgb, in_batches
from classify.export.loading import open_exported
from classify.export.tflite import TfliteFormat, fit
from classify.predict.classifiers import SELECTED, Classifier, Prediction, PredictOptions
from data_cache.cores import n_cores
from data_cache.errors import BadImageError, ModelError, ParameterError
from extract.decode import decode
from extract.pipeline import Known, Position
from extract.preprocess import Pixels
from extract.sources.unlabeled import ImageStream, NamedImage

_CHUNK = 8
_CHUNKS_AHEAD_PER_WORKER = 2

_Outcome = NDArray[np.float64] | BadImageError
"""The probabilities (k,) of an image, or why it has none."""


@dataclass(frozen=True)
class ExportedClassifier(Classifier):
    """An exported file that is ready to classify images; it is loaded when it is first needed."""

    path: Path
    file_format: Format
    described: Described

    @classmethod
    def load(cls, path: Path, options: PredictOptions) -> ExportedClassifier:
        """Open a model that ``export-model`` wrote.

        Raises
        ------
        ModelError, ParameterError
            See :func:`classify.predict.classifiers.load_classifier`.
        """
        _refuse_options(path, options)
        file_format, described = open_exported(path)
        if options.probabilities not in (None, described.probabilities):
            raise ParameterError(
                f"{path} gives {described.probabilities} probabilities: leave --probabilities out, "
                f"or export the run with --probabilities {options.probabilities}"
            )
        return cls(described.classes, path, file_format, described)

    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        known: Known | None = None,
        scale: float | None = None,
    ) -> Generator[Prediction]:
        """Yield what becomes of each image; see the base class. Nothing can be ``known``."""
        if known is not None:
            raise ParameterError(f"{self.path} takes pixels: features are of no use to it")
        stream = ImageStream(images, self.described.decoding, scale)
        positions = stream.positions()
        turns = threading.Semaphore(self.runner.n_concurrent)
        n_workers = n_cores()
        waiting: deque[Future[list[_Outcome]]] = deque()
        with ThreadPoolExecutor(n_workers, "classify") as pool:
            try:
                while chunk := list(islice(positions, _CHUNK)):
                    waiting.append(pool.submit(self._classify, stream, chunk, turns))
                    if len(waiting) >= n_workers * _CHUNKS_AHEAD_PER_WORKER:
                        yield from _predictions(stream, waiting.popleft())
                while waiting:
                    yield from _predictions(stream, waiting.popleft())
            finally:
                for future in waiting:
                    future.cancel()

    def start(self) -> None:
        """Load the file."""
        _ = self.runner

    def known(self, cache: Path) -> AbstractContextManager[Known | None]:
        """Refuse: an exported file takes pixels, not features."""
        raise ParameterError(
            f"{self.path} takes pixels, and {cache} holds features: leave --cache out"
        )

    @cached_property
    def runner(self) -> Runner:
        """The file, loaded."""
        return self.file_format.runner(self.path)

    def _classify(
        self, stream: ImageStream, chunk: Sequence[Position], turns: threading.Semaphore
    ) -> list[_Outcome]:
        """Return what becomes of each image of a chunk."""
        outcomes: dict[int, _Outcome] = {}
        for numbers, batch in in_batches(self._decoded(stream, chunk, outcomes)):
            with turns:
                outcomes |= zip(numbers, self._probabilities(batch), strict=True)
        return [outcomes[number] for number in range(len(chunk))]

    def _decoded(
        self, stream: ImageStream, chunk: Sequence[Position], outcomes: dict[int, _Outcome]
    ) -> Iterator[tuple[int, Pixels]]:
        """Yield the images of a chunk by their numbers in it; why one is bad is its outcome."""
        for number, position in enumerate(chunk):
            try:
                pixels = as_rgb(decode(stream.fetch(*position), self.described.decoding))
                yield number, self._fitted(pixels)
            except BadImageError as error:
                outcomes[number] = error

    def _fitted(self, pixels: Pixels) -> Pixels:
        """Bring an image to the size that the file takes, if it takes one only."""
        is_fixed = isinstance(self.file_format, TfliteFormat)
        return fit(pixels, self.described.preprocessing) if is_fixed else pixels

    def _probabilities(self, images: Pixels) -> NDArray[np.float64]:
        """Run the file; whole-number models round, so each sum is brought to 1."""
        rows = np.asarray(self.runner.probabilities(images), np.float64)
        if rows.shape != (len(images), len(self.classes)) or not np.isfinite(rows).all():
            raise ModelError(
                f"{self.path} gives {rows.shape[-1]} numbers for an image, expected the "
                f"probabilities of {len(self.classes)} classes: export it again"
            )
        return rows / rows.sum(axis=1, keepdims=True)


def _predictions(stream: ImageStream, done: Future[list[_Outcome]]) -> Iterator[Prediction]:
    """Yield what became of the images of the chunk that was held for longest."""
    outcomes = done.result()
    for image, outcome in zip(stream.finish(len(outcomes)), outcomes, strict=True):
        if isinstance(outcome, BadImageError):
            yield Prediction(image.id, None, str(outcome))
        else:
            yield Prediction(image.id, outcome)


def _refuse_options(path: Path, options: PredictOptions) -> None:
    """Raise :class:`ParameterError` for an option that is about the parts of a run."""
    given = {
        "--model": options.model not in (None, SELECTED),
        "--weights": options.weights is not None,
        "--preprocess": options.preprocess is not None,
        "--engine": options.engine != "auto",
        "--batch-size": options.batch_size is not None,
    }
    if needless := [name for name, is_given in given.items() if is_given]:
        raise ParameterError(
            f"{path} is an exported model, which has all of that inside: leave {needless[0]} out"
        )
