"""Classify new images with a run: the very steps that made its features, then its head.

The recipe in the run says how features are made. Everything that it names is found again and
compared with it (:mod:`extract.extractor`), so an image gets the same features here as in
training, or the run is refused.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.predict.classifiers import SELECTED, Classifier, Prediction, PredictOptions
from classify.results.runs import (
    BACKBONE_FILE,
    LOGISTIC,
    Run,
    check_classes,
    load_run,
    reading_model,
)
from classify.statistics.calibration import apply_temperature
from classify.statistics.metrics import softmax
from classify.stored.arrays import kind_of
from classify.stored.keras_file import read_dense_head
from classify.stored.linear import LINEAR_KINDS, read_linear_probe
from classify.stored.model import LogitsModel, StoredModel
from data_cache.cache import FeatureCache
from data_cache.errors import ParameterError, RecipeMismatchError, RunError
from data_cache.lookup import FeatureLookup
from extract.engines import Engine
from extract.extractor import Extractor, WeightsChoice, open_extractor
from extract.pipeline import Extracted, Known, Pipeline
from extract.sources.unlabeled import ImageStream, NamedImage
from extract.weights import IMAGENET, RANDOM


@dataclass(frozen=True)
class RunClassifier(Classifier):
    """A run that is ready to classify images; the backbone is loaded when it is first needed.

    Attributes
    ----------
    model : features (n, d) -> logits, a column for each of its ``classes_``, which are positions
        in ``classes``
    extractor : images -> features
    temperature : what the logits are divided by
    """

    model: LogitsModel
    extractor: Extractor
    temperature: float = 1.0
    options: PredictOptions = field(default_factory=PredictOptions)

    @classmethod
    def load(cls, path: Path, options: PredictOptions) -> RunClassifier:
        """Read a run folder, and find everything that its recipe names.

        Raises
        ------
        HeadstartError
            See :func:`classify.predict.classifiers.load_classifier`.
        """
        run = load_run(path)
        name = model_name(run, options.model)
        temperature = temperature_of(run, name) if options.probabilities == "calibrated" else 1.0
        extractor = run_extractor(run, options.weights, options.preprocess)
        return cls(run.classes, load_model(run, name), extractor, temperature, options)

    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        known: Known | None = None,
        scale: float | None = None,
    ) -> Generator[Prediction]:
        """Yield what becomes of each image; see the base class."""
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

    def start(self) -> None:
        """Load the backbone."""
        _ = self.engine

    @contextmanager
    def known(self, cache: Path) -> Iterator[Known]:
        """Open a cache of the run's recipe; see the base class."""
        with FeatureCache.open(cache) as opened:
            if differences := self.extractor.recipe.differences(opened.recipe):
                raise RecipeMismatchError(
                    f"{opened.path} holds features of another recipe than the run's: "
                    f"{'; '.join(differences)}: leave --cache out, or give one of the run's recipe"
                )
            yield FeatureLookup(opened).find

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
        logits = apply_temperature(self.model.logits(features), self.temperature)
        probabilities[:, self.model.classes_] = softmax(logits)
        return probabilities


def model_name(run: Run, name: str | None) -> str:
    """Return the name of a model of a run; None and ``selected`` mean the selected one."""
    return run.selected if name in (None, SELECTED) else name


def load_model(run: Run, name: str | None = None) -> LogitsModel:
    """Return a model of a run, by default the selected one, to predict with.

    Dense heads and linear probes need neither TensorFlow nor scikit-learn; others are estimators.

    Raises
    ------
    RunError
        The run has no such model, or its file is missing or damaged.
    """
    name = model_name(run, name)
    path = run.model_path(name)
    with reading_model(path):
        stored = _read_stored(path, name, len(run.classes))
    if stored is None:
        return run.model(name)
    check_classes(run, name, stored)
    return stored


def _read_stored(path: Path, name: str, n_classes: int) -> StoredModel | None:
    """Read the file of a model; None for one that only its estimator can read."""
    if path.suffix == ".keras":
        return read_dense_head(path, n_classes)
    kind = LOGISTIC if name == LOGISTIC else kind_of(path)
    return read_linear_probe(path, kind) if kind in LINEAR_KINDS else None


def temperature_of(run: Run, name: str) -> float:
    """Return the temperature that was fitted for a model of a run.

    Raises
    ------
    ParameterError
        None was fitted.
    RunError
        It is no number above 0.
    """
    figures = run.metrics.get(name)
    temperature = figures.get("temperature") if isinstance(figures, dict) else None
    if temperature is None:
        raise ParameterError(
            f"{run.path} has no calibrated probabilities of {name}: no temperature was fitted to "
            "it; leave --probabilities out, or train again"
        )
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise RunError(f"{run.path}: temperature {temperature!r} of {name}, expected one above 0")
    return float(temperature)


def run_extractor(
    run: Run, weights: str | None = None, preprocess: Path | None = None
) -> Extractor:
    """Find what made the features of a run again; the weights where it found them, by default.

    Raises
    ------
    HeadstartError
        See :func:`extract.extractor.open_extractor`.
    """
    return open_extractor(run.recipe, WeightsChoice(weights or _remembered(run), preprocess))


def _remembered(run: Run) -> str:
    """Return where the weights of a run are likely to be; their digest is compared in any case."""
    for path in (run.path / BACKBONE_FILE, Path(run.provenance.weights_path or "/")):
        if path.is_file():
            return str(path)
    return RANDOM if run.provenance.weights.startswith(RANDOM) else IMAGENET
