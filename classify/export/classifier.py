"""Classify new images with an exported file, in its own runtime: pixels in, probabilities out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.export.description import Described
from classify.export.formats import Format, Runner
from classify.export.images import as_rgb
from classify.export.loading import open_exported
from classify.export.tflite import TfliteFormat, fit
from classify.predict.classifiers import SELECTED, Classifier, Prediction, PredictOptions
from data_cache.cores import n_cores
from data_cache.errors import BadImageError, ModelError, ParameterError
from extract.decode import decode
from extract.pipeline import Known
from extract.preprocess import Pixels
from extract.sources.unlabeled import ImageStream, NamedImage

_AHEAD_PER_WORKER = 4


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
        turns = threading.Semaphore(self.runner.n_concurrent)
        n_workers = n_cores()
        waiting: deque[Future[NDArray[np.float64] | BadImageError]] = deque()
        with ThreadPoolExecutor(n_workers, "classify") as pool:
            try:
                for position in stream.positions():
                    waiting.append(pool.submit(self._classify, stream, position, turns))
                    if len(waiting) >= n_workers * _AHEAD_PER_WORKER:
                        yield _prediction(stream, waiting.popleft())
                while waiting:
                    yield _prediction(stream, waiting.popleft())
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
        self, stream: ImageStream, position: tuple[str, int], turns: threading.Semaphore
    ) -> NDArray[np.float64] | BadImageError:
        """Return the probabilities (k,) of an image, or why it has none."""
        try:
            pixels = as_rgb(decode(stream.fetch(*position), self.described.decoding))
            fitted = self._fitted(pixels)
        except BadImageError as error:
            return error
        with turns:
            return self._probabilities(fitted)

    def _fitted(self, pixels: Pixels) -> Pixels:
        """Bring an image to the size that the file takes, if it takes one only."""
        is_fixed = isinstance(self.file_format, TfliteFormat)
        return fit(pixels, self.described.preprocessing) if is_fixed else pixels

    def _probabilities(self, pixels: Pixels) -> NDArray[np.float64]:
        """Run the file; whole-number models round, so the sum is brought to 1."""
        rows = np.asarray(self.runner.probabilities(pixels[None]), np.float64)
        if rows.shape != (1, len(self.classes)) or not np.isfinite(rows).all():
            raise ModelError(
                f"{self.path} gives {rows.shape[-1]} numbers for an image, expected the "
                f"probabilities of {len(self.classes)} classes: export it again"
            )
        return rows[0] / rows[0].sum()


def _prediction(
    stream: ImageStream, done: Future[NDArray[np.float64] | BadImageError]
) -> Prediction:
    """Return what became of the image that was held for longest."""
    result = done.result()
    (image,) = stream.finish(1)
    if isinstance(result, BadImageError):
        return Prediction(image.id, None, str(result))
    return Prediction(image.id, result)


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
