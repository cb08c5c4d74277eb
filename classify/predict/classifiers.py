"""Classify new images: what every classifier has in common, and how one is loaded.

A run folder and an exported file are loaded alike, and give the same kinds of answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from classify.export.safety import GRAPH_NAME
from data_cache.errors import BadImagesError, ModelError
from extract.pipeline import Known
from extract.sources.arrays import check_images, scale_to_pixels
from extract.sources.unlabeled import AnyImage, NamedImage, NoImage

UNSURE = "unsure"
"""The class of an image whose likeliest class is less probable than the threshold."""

SELECTED = "selected"
"""What a user calls the model of a run that won on validation."""


@dataclass(frozen=True)
class PredictOptions:
    """What the user may choose about a prediction.

    All but ``probabilities`` are for a run; an exported file holds one model and its weights.

    Attributes
    ----------
    model : name of a model of the run; None or ``selected`` is its winner
    probabilities : ``raw`` or ``calibrated``; None is raw, or what an exported file gives
    weights, preprocess : where the backbone's weights are; None is where the run found them. See
        :class:`extract.extractor.WeightsChoice`
    engine : ``auto``, ``keras``, ``litert`` or ``onnx``
    batch_size : images in a forward pass; None measures
    """

    model: str | None = None
    probabilities: Literal["raw", "calibrated"] | None = None
    weights: str | None = None
    preprocess: Path | None = None
    engine: str = "auto"
    batch_size: int | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the options."""
        return tuple(one.name for one in fields(cls))


@dataclass(frozen=True)
class Prediction:
    """What became of one image.

    Attributes
    ----------
    id : its path as it was given, or its position in what was given, from 0
    probabilities : (k,) float64, sum 1; None for an image that cannot be read
    reason : why it cannot be read; empty for one that can
    """

    id: str
    probabilities: NDArray[np.float64] | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What became of n images.

    Attributes
    ----------
    classes : the names of the k classes
    probabilities : (n, k) float64, each row's sum 1
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> tuple[str, ...]:
        """The likeliest class of each image."""
        return tuple(self.classes[i] for i in self.probabilities.argmax(axis=1))


@dataclass(frozen=True)
class Classifier(ABC):
    """What takes images to the probabilities of k classes.

    Attributes
    ----------
    classes : the names of the k classes
    """

    classes: tuple[str, ...]

    def predict(self, images: Iterable[AnyImage] | AnyImage) -> Predictions:
        """Classify images: paths, bytes of files, arrays or Pillow images; or one of them.

        One array is (n, h, w) or (n, h, w, 1|3|4): n images. Floating-point pixels are in [0, 1]
        or in [0, 255], and one array is judged as a whole, arrays in a list each alone.

        Raises
        ------
        BadImagesError
            An image cannot be read; :meth:`stream` leaves it out instead.
        SourceError
            An array is of no such shape or range.
        """
        scale = None
        if isinstance(images, np.ndarray):
            check_images(images, "the array")
            scale = scale_to_pixels([images])
        rows = [_probabilities(one) for one in self.stream(_named(images), scale=scale)]
        return Predictions(self.classes, np.array(rows).reshape(-1, len(self.classes)))

    @abstractmethod
    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        known: Known | None = None,
        scale: float | None = None,
    ) -> Generator[Prediction]:
        """Yield what becomes of each image, in order, holding only those under way.

        ``known`` finds features that need no forward pass; see :meth:`known`. ``scale`` is that of
        :class:`~extract.sources.unlabeled.ImageStream`.
        """

    @abstractmethod
    def start(self) -> None:
        """Load what is loaded when it is first needed."""

    @abstractmethod
    def known(self, cache: Path) -> AbstractContextManager[Known | None]:
        """Open a cache, and return what finds the features that it holds.

        Raises
        ------
        HeadstartError
            It cannot be read, or its features are not those that this classifier takes.
        """


def load_classifier(path: Path | str, options: PredictOptions | None = None) -> Classifier:
    """Read a run folder, or a model that ``export-model`` wrote.

    Raises
    ------
    RunError
        It is a folder, but no run, or not whole, or has no such model.
    ModelError
        It is no exported model, was changed, or holds more than a classifier needs.
    ParameterError
        An option has no meaning for an exported model.
    HeadstartError
        See :func:`extract.extractor.open_extractor`.
    """
    path, options = Path(path), options or PredictOptions()
    if not path.exists():
        raise ModelError(
            f"{path} is not there: expected a run folder, or a model that export-model wrote"
        )
    is_exported = path.is_file() or (path / GRAPH_NAME).is_file()
    if is_exported:  # other folders are runs
        from classify.export.classifier import ExportedClassifier

        return ExportedClassifier.load(path, options)
    from classify.predict.run import RunClassifier

    return RunClassifier.load(path, options)


def _named(images: Iterable[AnyImage] | AnyImage) -> Iterator[NamedImage]:
    """Name images by their paths, else by their positions; a lone one is the only one."""
    if isinstance(images, str | bytes | Path | Image | NoImage):
        images = [images]
    for position, image in enumerate(images):
        is_path = isinstance(image, str | Path)
        yield NamedImage(str(image) if is_path else str(position), image)


def _probabilities(prediction: Prediction) -> NDArray[np.float64]:
    """Return the probabilities of an image; refuse one that cannot be read."""
    if prediction.probabilities is None:
        raise BadImagesError(f"image {prediction.id}: {prediction.reason}")
    return prediction.probabilities
