"""Heads side by side: the arithmetic of training them, written out.

With h heads, b rows, and a layer of u units on i inputs, weights are (h, u, i + 1), the last
column the bias, so that all heads' rows make one matrix (h * u, i + 1). Scores are (h, u, b):
softmax and errors run along contiguous rows. Everything is float32, as in Keras.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from classify.heads.batches import Batch, HiddenView, InputView
from classify.heads.spec import HeadSpec

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
"""Adam's decay of the mean gradient, of the mean square, and what keeps a division from zero:
Keras's defaults."""

Dense = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A dense layer: its kernel (inputs, units) and its bias (units,)."""


class StackedDense:
    """One dense layer of every head, and Adam's state.

    D. P. Kingma, J. Ba (2015), "Adam: a method for stochastic optimization", ICLR. The moments
    are kept without their factors 1 - beta, which go into the rate and into epsilon, so that a
    step passes over memory fewer times.
    """

    def __init__(self, kernel: NDArray[np.float32], n_heads: int) -> None:
        n_inputs, n_units = kernel.shape
        self.weights = np.zeros((n_heads, n_units, n_inputs + 1), np.float32)
        self.weights[:, :, :-1] = kernel.T
        self._mean = np.zeros_like(self.weights)
        self._square = np.zeros_like(self.weights)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the heads that ``kept`` (h,) does not mark."""
        self.weights, self._mean, self._square = (
            state[kept] for state in (self.weights, self._mean, self._square)
        )

    def dense(self, head: int) -> Dense:
        """Return a copy of one head's kernel and bias."""
        weights = self.weights[head].T
        return weights[:-1].copy(), weights[-1].copy()

    def decay(self, factors: NDArray[np.float32]) -> None:
        """Multiply every kernel by its head's factor, (h, 1, 1)."""
        biases = self.weights[:, :, -1].copy()
        # All at once, biases too, is three times as fast as the kernels' part of each row.
        self.weights *= factors
        self.weights[:, :, -1] = biases

    def descend(self, gradient: NDArray[np.float32], rates: NDArray[np.float32], step: int) -> None:
        """Take Adam's ``step``-th step, from 1, at each head's rate (h, 1, 1).

        ``gradient``, as the weights, is overwritten.
        """
        self._mean *= BETA_1
        self._mean += gradient
        self._square *= BETA_2
        gradient *= gradient
        self._square += gradient
        np.sqrt(self._square, out=gradient)
        gradient += EPSILON / sqrt(1 - BETA_2)
        np.divide(self._mean, gradient, out=gradient)
        correction = sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
        gradient *= rates * np.float32(correction * (1 - BETA_1) / sqrt(1 - BETA_2))
        self.weights -= gradient


class HeadStack:
    """Heads of equal widths that see their inputs alike, trained together.

    ``kernels`` are the initial kernels (inputs, units), layer by layer, that all heads start from.
    """

    def __init__(self, specs: Sequence[HeadSpec], kernels: Sequence[NDArray[np.float32]]) -> None:
        self._specs = tuple(specs)
        self._layers = [StackedDense(kernel, len(specs)) for kernel in kernels]
        self._input_view = InputView.of(specs[0])
        self._hidden_view = HiddenView.of(specs[0])
        self._set_columns()

    def __len__(self) -> int:
        return len(self._specs)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the heads that ``kept`` (h,) does not mark."""
        self._specs = tuple(compress(self._specs, kept))
        for layer in self._layers:
            layer.keep(kept)
        self._set_columns()

    def dense_layers(self, head: int) -> tuple[Dense, ...]:
        """Return copies of the layers of one head."""
        return tuple(layer.dense(head) for layer in self._layers)

    def train(self, batches: Sequence[Batch]) -> None:
        """Take a step for each batch."""
        gradients = [np.empty_like(layer.weights) for layer in self._layers]
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in batches:
                self._differentiate(batch, gradients)
                for layer, gradient in zip(self._layers, gradients, strict=True):
                    if self._decays:
                        layer.decay(self._kept_share)
                    layer.descend(gradient, self._rates, batch.step)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return every head's logits (n, h, k) of features (n, d), scaled as the inputs are."""
        first, *others = (layer.weights for layer in self._layers)
        scores = _rows(first)[:, :-1] @ features.T + _rows(first)[:, -1:]
        scores = scores.reshape(len(self), -1, len(features))
        for weights in others:
            scores = weights[:, :, :-1] @ np.maximum(scores, 0) + weights[:, :, -1:]
        return scores.transpose(2, 0, 1)

    def _set_columns(self) -> None:
        """Lay out what differs between heads as columns, (h, 1, 1) or (h, 1)."""
        specs = self._specs
        self._rates = _column(spec.learning_rate for spec in specs)
        self._kept_share = 1 - _column(spec.learning_rate * spec.weight_decay for spec in specs)
        self._decays = any(spec.weight_decay for spec in specs)
        self._smoothing = _column(spec.label_smoothing for spec in specs)
        self._is_balanced = _column(spec.class_weight == "balanced" for spec in specs) > 0

    def _differentiate(self, batch: Batch, gradients: list[NDArray[np.float32]]) -> None:
        """Fill ``gradients``, shaped as the layers' weights, with those of the mean loss."""
        inputs = batch.inputs[self._input_view]
        weights = self._layers[0].weights
        scores = _rows(weights) @ inputs.T
        scores = scores.reshape(len(self), -1, len(inputs))
        if len(self._layers) == 1:
            errors = self._errors(scores, batch)
        else:
            errors = self._pass_through_hidden(scores, batch, gradients[1])
        np.matmul(_rows(errors), inputs, out=_rows(gradients[0]))

    def _pass_through_hidden(
        self, scores: NDArray[np.float32], batch: Batch, gradient: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the loss's derivatives by the hidden layer's scores (h, u, b).

        Fills ``gradient`` with that of the layer of logits.
        """
        mask = batch.hidden_masks[self._hidden_view]
        weights = self._layers[1].weights
        outputs = np.ones((len(scores), scores.shape[1] + 1, scores.shape[2]), np.float32)
        np.maximum(scores, 0, out=outputs[:, :-1])
        outputs[:, :-1] *= mask
        errors = self._errors(weights @ outputs, batch)
        np.matmul(errors, outputs.transpose(0, 2, 1), out=gradient)
        back = weights[:, :, :-1].transpose(0, 2, 1) @ errors
        back *= mask
        back *= scores > 0
        return back

    def _errors(self, logits: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
        """Return the mean loss's derivatives by the logits (h, k, b), which are overwritten.

        They are w (p - q) / b: p the softmax, q the smoothed label, w the row's weight.
        """
        logits -= logits.max(axis=1, keepdims=True)
        errors = np.exp(logits, out=logits)
        errors /= errors.sum(axis=1, keepdims=True)
        errors -= self._smoothing / np.float32(errors.shape[1])
        rows = np.arange(len(batch.labels))
        errors[:, batch.labels, rows] -= 1 - self._smoothing[:, 0]
        weights = np.where(self._is_balanced, batch.balanced_weights, np.float32(1))
        errors *= weights / np.float32(len(rows))
        return errors


def _column(values: Iterable[float]) -> NDArray[np.float32]:
    """Return a value for each head as (h, 1, 1)."""
    return np.array(list(values), np.float32).reshape(-1, 1, 1)


def _rows(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a view of (h, u, i) as the matrix (h * u, i)."""
    return stack.reshape(-1, stack.shape[-1])
