"""Classify new images with a run: the very steps that made its features, then its head.

The recipe in the run says how features are made. Everything that it names is found again and
compared with it (:mod:`extract.extractor`), so an image gets the same features here as in
training, or the run is refused.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from classify.estimators import LogitsClassifier
from classify.keras_file import read_dense_head
from classify.runs import DENSE, LOADING_ERRORS, MODEL_FILES, Run, load_run
from data_cache.cache import FeatureCache
from data_cache.errors import BadImagesError, RecipeMismatchError, RunError
from data_cache.lookup import FeatureLookup
from extract.engines import Engine
from extract.extractor import Extractor, WeightsChoice, open_extractor
from extract.pipeline import Extracted, Known, Pipeline
from extract.sources.arrays import check_images, scale_to_pixels
from extract.sources.unlabeled import AnyImage, ImageStream, NamedImage

UNSURE = "unsure"
"""The class of an image whose likeliest class is less probable than the threshold."""


@dataclass(frozen=True)
class PredictOptions:
    """What the user may choose about a prediction.

    Attributes
    ----------
    model : ``dense`` or ``logistic_regression``; None or ``selected`` is the winner of the run
    weights, preprocess : where the backbone's weights are; see :class:`WeightsChoice`
    engine : ``auto``, ``keras`` or ``onnx``
    batch_size : images in a forward pass; None measures
    """

    model: str | None = None
    weights: str = "imagenet"
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
class Classifier:
    """A run that is ready to classify images; the backbone is loaded when it is first needed.

    Attributes
    ----------
    classes : the names of the k classes
    model : features (n, d) -> logits, a column for each of its ``classes_``, which are positions
        in ``classes``
    extractor : images -> features
    """

    classes: tuple[str, ...]
    model: LogitsClassifier
    extractor: Extractor
    options: PredictOptions = field(default_factory=PredictOptions)

    @classmethod
    def load(cls, path: Path | str, options: PredictOptions | None = None) -> Classifier:
        """Read a run folder, and find everything that its recipe names.

        Raises
        ------
        RunError
            It is no run, or not whole, or has no such model.
        HeadstartError
            See :func:`extract.extractor.open_extractor`.
        """
        options = options or PredictOptions()
        run = load_run(path)
        model = load_model(run, options.model)
        choice = WeightsChoice(options.weights, options.preprocess)
        return cls(run.classes, model, open_extractor(run.recipe, choice), options)

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

    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        known: Known | None = None,
        scale: float | None = None,
    ) -> Generator[Prediction]:
        """Yield what becomes of each image, in order, holding only those under way.

        ``known`` finds features that need no forward pass; see :func:`known_features`. ``scale``
        is that of :class:`~extract.sources.unlabeled.ImageStream`.
        """
        extractor, stream = self.extractor, ImageStream(images, self.extractor.decoding, scale)
        pipeline = Pipeline(
            stream,
            extractor.decoding,
            extractor.preprocessing,
            self.engine,
            self.options.batch_size,
            known=known,
        )
        for part in pipeline.run(stream.positions()):
            yield from self._predictions(stream.finish(len(part)), part)

    @cached_property
    def engine(self) -> Engine:
        """The backbone, loaded."""
        engine = self.extractor.start_engine(self.options.engine)
        if engine.n_features != self.model.n_features_in_:
            raise RunError(
                f"the model takes {self.model.n_features_in_} features, but the backbone gives "
                f"{engine.n_features}: the files are not of one run"
            )
        return engine

    def _predictions(self, images: list[NamedImage], part: Extracted) -> Iterator[Prediction]:
        """Yield what became of the images of one chunk."""
        rows = iter(self.probabilities(part.features)) if len(part.features) else iter(())
        reasons = (image.reason for image in part.bad_images)
        for image, kept in zip(images, part.kept, strict=True):
            if kept:
                yield Prediction(image.id, next(rows))
            else:
                yield Prediction(image.id, None, next(reasons))

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class, (n, k), for features (n, d).

        A class that the model never saw, because it had no training row, has probability 0.
        """
        probabilities = np.zeros((len(features), len(self.classes)))
        probabilities[:, self.model.classes_] = self.model.predict_proba(features)
        return probabilities


def load_model(run: Run, name: str | None = None) -> LogitsClassifier:
    """Return a model of a run, by default the selected one, without TensorFlow where that can be.

    Raises
    ------
    RunError
        The run has no such model, or its file is missing or damaged.
    """
    name = run.selected if name in (None, "selected") else name
    if name != DENSE:
        return run.model(name)
    path = run.path / MODEL_FILES[DENSE]
    try:
        head = read_dense_head(path, len(run.classes))
    except LOADING_ERRORS as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return run.model(DENSE) if head is None else head


def known_features(cache: FeatureCache, extractor: Extractor) -> Known:
    """Return what finds the features that a cache holds.

    Raises
    ------
    RecipeMismatchError
        The cache was made by another recipe than the run's.
    """
    if differences := extractor.recipe.differences(cache.recipe):
        raise RecipeMismatchError(
            f"{cache.path} holds features of another recipe than the run's: "
            f"{'; '.join(differences)}: leave --cache out, or give one of the run's recipe"
        )
    return FeatureLookup(cache).find


def _named(images: Iterable[AnyImage] | AnyImage) -> Iterator[NamedImage]:
    """Name images by their paths, else by their positions; a lone one is the only one."""
    if isinstance(images, str | bytes | Path | Image):
        images = [images]
    for position, image in enumerate(images):
        is_path = isinstance(image, str | Path)
        yield NamedImage(str(image) if is_path else str(position), image)


def _probabilities(prediction: Prediction) -> NDArray[np.float64]:
    """Return the probabilities of an image; refuse one that cannot be read."""
    if prediction.probabilities is None:
        raise BadImagesError(f"image {prediction.id}: {prediction.reason}")
    return prediction.probabilities
