"""The probe that fine-tuning has to beat: what the head's run selected, as it was when chosen.

A run may keep its selected model refitted to the validation rows too. Those rows decide here, so
what takes part is the same model, fitted to the training rows alone. Training starts from the Dense
head in any case: a logistic regression on standardized features overfits at once when it is trained
on together with the backbone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from classify.estimators import LogitsClassifier
from classify.probes import LogisticRegressionProbe
from classify.results.runs import DENSE, LOGISTIC, Run

Labeled = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features (n, d) and labels (n,)."""


def fit_probe(run: Run, training: Labeled) -> LogitsClassifier:
    """Return the selected model of a run, fitted to its training rows alone.

    Raises
    ------
    RunError
        The run's model cannot be read.
    """
    if run.selected == DENSE:
        return run.model(DENSE)
    if run.selected == LOGISTIC:
        weights = run.metrics.get("class_weight")
        probe = LogisticRegressionProbe(run.metrics[LOGISTIC]["C"], class_weight=weights)
        return probe.fit(*training)
    fitted: LogitsClassifier = clone(run.model(run.selected)).fit(*training)
    return fitted
