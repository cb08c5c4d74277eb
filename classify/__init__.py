"""Learn from cached features: heads, probes, honest selection and the figures they get.

:func:`load` reads a finished run or an exported model, to classify new images with it::

    import classify

    predictions = classify.load("runs/photos").predict(["a.jpg", "b.jpg"])
    predictions.labels, predictions.probabilities
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classify.predict.classifiers import Classifier, PredictOptions


def load(path: Path | str, options: PredictOptions | None = None) -> Classifier:
    """Return the classifier in a run folder, or in a model that ``export-model`` wrote.

    See :func:`classify.predict.classifiers.load_classifier`.
    """
    from classify.predict.classifiers import load_classifier

    return load_classifier(path, options)
