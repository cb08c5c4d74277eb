"""A configuration of a head: all that decides how it is trained, data aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from data_cache.errors import ParameterError


@dataclass(frozen=True)
class HeadSpec:
    """One configuration.

    Attributes
    ----------
    learning_rate : Adam's, above 0
    dropout : share of each dense layer's inputs set to zero in a training step, in [0, 1)
    weight_decay : decoupled from the gradient, as in AdamW: each step takes ``learning_rate *
        weight_decay`` of every kernel away from it; biases do not decay. 0 or more. I. Loshchilov,
        F. Hutter (2019), "Decoupled weight decay regularization", ICLR
    label_smoothing : share of each label's probability spread evenly over all classes, in [0, 1)
    epochs : passes over the training rows, 1 or more; the most there are, with ``patience``
    batch_size : rows in a step, 1 or more; the last step of an epoch takes what is left
    standardize : bring each feature to mean 0 and standard deviation 1 over the training rows
    class_weight : ``"balanced"`` weighs each row by n / (k * rows of its class); or None
    hidden_units : width of a hidden layer of rectified linear units; 0 for no such layer
    patience : stop after so many epochs, 1 or more, without a lower validation log loss, and go
        back to the epoch that had the lowest; None to run all epochs
    seed : of the initial weights, the order of the rows and the dropout masks; 0 or more

    Raises
    ------
    ParameterError
        A value is out of its range.
    """

    learning_rate: float = 1e-3
    dropout: float = 0.2
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    epochs: int = 5
    batch_size: int = 64
    standardize: bool = False
    class_weight: Literal["balanced"] | None = None
    hidden_units: int = 0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.class_weight not in {None, "balanced"}:
            raise ParameterError(
                f"class_weight is {self.class_weight!r}: expected 'balanced' or None"
            )

    def widths(self, n_features: int, n_classes: int) -> tuple[int, ...]:
        """Return the widths from the features to the logits: (d, k) or (d, hidden, k)."""
        hidden = (self.hidden_units,) if self.hidden_units else ()
        return (n_features, *hidden, n_classes)


_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda value: 0 < value < inf, "above 0"),
    "dropout": (lambda value: 0 <= value < 1, "within [0, 1)"),
    "weight_decay": (lambda value: 0 <= value < inf, "0 or more"),
    "label_smoothing": (lambda value: 0 <= value < 1, "within [0, 1)"),
    "epochs": (lambda value: value >= 1, "1 or more"),
    "batch_size": (lambda value: value >= 1, "1 or more"),
    "hidden_units": (lambda value: value >= 0, "0 or more"),
    "patience": (lambda value: value is None or value >= 1, "1 or more, or None"),
    "seed": (lambda value: value >= 0, "0 or more"),
}


def check_ranges(parameters: object) -> None:
    """Raise :class:`ParameterError` if an attribute named as a hyperparameter is out of range.

    ``class_weight`` is not looked at, nor are hyperparameters that the object does not have.
    """
    for name, (is_right, expected) in _RANGES.items():
        if hasattr(parameters, name) and not is_right(value := getattr(parameters, name)):
            raise ParameterError(f"{name} is {value!r}: expected {expected}")
