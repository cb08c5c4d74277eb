"""Proof that an exported file predicts what the run predicts, before it is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classify.export.formats import Predict, Runner
from classify.export.graph import LOGITS, PROBABILITIES
from classify.export.images import Sample, in_batches
from classify.statistics.metrics import accuracy, softmax
from data_cache.errors import ExportError
from extract.preprocess import Pixels

if TYPE_CHECKING:
    from classify.estimators import LogitsClassifier

N_IMAGES = 32
"""How many images are compared; all, where there are fewer."""

N_IMAGES_FIXED = 500
"""How many where the file takes one size, since accuracy is measured on them too."""

TOLERANCE = 1e-3
"""The largest distance of a logit, and of a probability, from the run's own."""

LEAST_EQUAL = 0.98
"""Of a quantized file, the share of images that must get the class they had."""

_LOWEST_LOG = -60.0  # below, a float32 probability says little of its logarithm


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

    def figures(self) -> dict[str, Any]:
        """Return it for the description."""
        return asdict(self)


@dataclass(frozen=True)
class FixedParity:
    """How well a file for images of one size agrees, and what its two changes cost.

    ``n_equal`` and ``largest_difference`` compare with the graph in Keras on the same pixels.

    Attributes
    ----------
    way : how it was run
    n_images : how many images were compared
    n_validation : how many of them the run validated on; the others it learned from
    n_equal : how many get the same class
    largest_difference : of the logarithm of a probability, over all images and classes
    run_accuracy : of the run's own model on these images, from cached features
    accuracy : of the file, on images resized as for training
    phone_accuracy : of the file, on images resized without antialiasing
    """

    way: str
    n_images: int
    n_validation: int
    n_equal: int
    largest_difference: float
    run_accuracy: float
    accuracy: float
    phone_accuracy: float

    def sentence(self) -> str:
        """Say it for people."""
        return (
            f"{self.way} gives {self.n_equal} of {self.n_images} images the class that Keras gives "
            f"for the same pixels; accuracy on them, which the run learned from or chose on, "
            f"{self.accuracy:.4f} (the run's own "
            f"{self.run_accuracy:.4f}: {self.accuracy - self.run_accuracy:+.4f}); resized as "
            f"phones do, without antialiasing, {self.phone_accuracy:.4f}"
        )

    def figures(self) -> dict[str, Any]:
        """Return it for the description."""
        return asdict(self)


AnyParity = Parity | FixedParity


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


@dataclass(frozen=True)
class FixedCheck:
    """Everything that a file for images of one size is checked with.

    Attributes
    ----------
    way : how it is run
    runner : the file
    graph : the graph in Keras, (1, S, S, 3) uint8 -> probabilities (1, k)
    fit, fit_as_phones_do : bring an image (h, w, 3) to (S, S, 3) uint8
    is_quantized : whether classes may differ now and then
    """

    way: str
    runner: Runner
    graph: Callable[[Pixels], NDArray[np.floating]]
    fit: Callable[[Pixels], NDArray[np.uint8]]
    fit_as_phones_do: Callable[[Pixels], NDArray[np.uint8]]
    is_quantized: bool

    def run(self, sample: Sample, model: LogitsClassifier) -> FixedParity:
        """Run every image of a sample through the file and through Keras.

        Raises
        ------
        ExportError
            Of a file that is not quantized, a class differs, or the logarithm of a probability is
            further off than :data:`TOLERANCE`. Of a quantized one, fewer than
            :data:`LEAST_EQUAL` of the classes are equal.
        """
        rows = list(self._probabilities(sample))
        graph, file, phone = (np.concatenate(part) for part in zip(*rows, strict=True))
        parity = self._figures(sample, model, (graph, file, phone))
        is_close = parity.n_equal == len(sample) and parity.largest_difference <= TOLERANCE
        is_alike = self.is_quantized and parity.n_equal >= LEAST_EQUAL * len(sample)
        if not (is_close or is_alike):
            expected = f"{LEAST_EQUAL:.0%} of them" if self.is_quantized else "all of them"
            hint = ": try another --quantize" if self.is_quantized else ""
            raise ExportError(
                f"{self.way} does not predict what Keras does: {parity.n_equal} of {len(sample)} "
                f"images get the same class, expected {expected}; logits differ by up to "
                f"{parity.largest_difference:.1e}; nothing was written{hint}"
            )
        return parity

    def _probabilities(self, sample: Sample) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """Yield the three rows of each image."""
        with ThreadPoolExecutor(self.runner.n_concurrent, "check") as pool:
            yield from pool.map(partial(self._rows, sample), range(len(sample)))

    def _rows(self, sample: Sample, number: int) -> tuple[NDArray, NDArray, NDArray]:
        """Return the graph's, the file's, and the file's on pixels as of a phone, (1, k) each."""
        pixels = sample.image(number)
        fitted, phone = self.fit(pixels)[None], self.fit_as_phones_do(pixels)[None]
        run = self.runner.probabilities
        return self.graph(fitted), run(fitted), run(phone)

    def _figures(
        self,
        sample: Sample,
        model: LogitsClassifier,
        probabilities: tuple[NDArray, NDArray, NDArray],
    ) -> FixedParity:
        """Compare the rows, (n, k) each."""
        graph, file, phone = probabilities
        own = model.predict(sample.features)
        named = [model.classes_[one.argmax(axis=1)] for one in (file, phone)]
        return FixedParity(
            self.way,
            len(sample),
            sample.n_validation,
            int((graph.argmax(axis=1) == file.argmax(axis=1)).sum()),
            _distance(_logarithms(file), _logarithms(graph)),
            *(accuracy(sample.labels, one) for one in (own, *named)),
        )


def _outputs(predict: Predict, sample: Sample) -> tuple[NDArray, NDArray]:
    """Return the logits and the probabilities (n, k) of a sample."""
    numbers: list[int] = []
    outputs = []
    for rows, batch in in_batches((row, sample.image(row)) for row in range(len(sample))):
        numbers += rows
        outputs.append(predict(batch))
    order = np.argsort(numbers)
    logits, probabilities = (
        np.concatenate([one[name] for one in outputs])[order] for name in (LOGITS, PROBABILITIES)
    )
    return logits, probabilities


def _logarithms(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return logarithms of probabilities: the logits, but for a number the same in a row."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(probabilities.astype(np.float64)), _LOWEST_LOG)


def _distance(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest difference of two (n, k) arrays; infinite where their shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max())
