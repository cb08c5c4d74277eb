"""Proof that an exported file predicts what the run predicts, before it is handed out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.export.formats import Predict
from classify.export.graph import LOGITS, PROBABILITIES
from classify.export.images import Sample
from classify.metrics import softmax
from data_cache.errors import ExportError

N_IMAGES = 32
"""How many images are compared; all, where there are fewer."""

TOLERANCE = 1e-3
"""The largest distance of a logit, and of a probability, from the run's own."""


@dataclass(frozen=True)
class Parity:
    """How well an exported file agrees with the cached-feature path.

    Attributes
    ----------
    way : how it was run
    n_images : how many images were compared
    largest_difference : of a logit, over all images and classes
    """

    way: str
    n_images: int
    largest_difference: float

    def sentence(self) -> str:
        """Say it for people."""
        return (
            f"{self.way} agrees with the run on {self.n_images} images: the same class for each, "
            f"logits within {self.largest_difference:.1e}"
        )


def check_parity(
    way: str, predict: Predict, sample: Sample, reference: NDArray[np.floating]
) -> Parity:
    """Run every image of a sample, and compare with the logits of their features (n, k).

    Raises
    ------
    ExportError
        A class differs, or a logit or a probability is further off than :data:`TOLERANCE`.
    """
    logits, probabilities = _outputs(predict, sample)
    difference = _distance(logits, reference)
    n_other = int((logits.argmax(axis=1) != reference.argmax(axis=1)).sum())
    distance = _distance(probabilities, softmax(reference))
    if n_other or not max(difference, distance) <= TOLERANCE:
        raise ExportError(
            f"{way} does not predict what the run does: {n_other} of {len(sample)} images get "
            f"another class, logits differ by up to {difference:.1e}, probabilities by "
            f"{distance:.1e}, expected none and at most {TOLERANCE:.0e}; nothing was written"
        )
    return Parity(way, len(sample), difference)


def _outputs(predict: Predict, sample: Sample) -> tuple[NDArray, NDArray]:
    """Return the logits and the probabilities (n, k) of a sample, each image by itself."""
    outputs = [predict(sample.image(number)[None]) for number in range(len(sample))]
    logits, probabilities = (
        np.concatenate([one[name] for one in outputs]) for name in (LOGITS, PROBABILITIES)
    )
    return logits, probabilities


def _distance(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest difference of two (n, k) arrays; infinite where their shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max())
