"""Which configurations a sweep tries: a grid, or random draws from a space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from itertools import product
from math import exp, isfinite, log, prod
from typing import Any, Literal, Self

import numpy as np

from classify.heads.spec import HeadSpec
from data_cache.errors import ParameterError

_MOST_DRAWS_EACH = 100


@dataclass(frozen=True)
class LogUniform:
    """Numbers in [``low``, ``high``], each order of magnitude as likely: 0 < low < high.

    Raises
    ------
    ParameterError
        The ends are not in this order.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and isfinite(self.high)):
            raise ParameterError(f"range {self.low:g}:{self.high:g}: expected 0 < low < high")

    def draw(self, rng: np.random.Generator) -> float:
        """Return a number, to four significant digits."""
        drawn = float(f"{exp(rng.uniform(log(self.low), log(self.high))):.3e}")
        return min(max(drawn, self.low), self.high)


Numbers = tuple[float, ...] | LogUniform
"""Numbers to choose from."""


@dataclass(frozen=True)
class SearchSpace:
    """What to choose each hyperparameter of a head from; see :class:`classify.heads.spec.HeadSpec`.

    Heads of equal ``dropout``, ``batch_size`` and ``standardize`` are trained faster together, so
    these have few values each.

    Raises
    ------
    ParameterError
        There is nothing to choose from, or a value is out of its range.
    """

    learning_rate: Numbers = LogUniform(1e-4, 1e-2)
    dropout: Numbers = (0.0, 0.2, 0.5)
    weight_decay: Numbers = (0.0, 0.01, 0.1, 1.0)
    label_smoothing: Numbers = (0.0, 0.1)
    epochs: tuple[int, ...] = (5, 10, 20)
    batch_size: tuple[int, ...] = (64,)
    standardize: tuple[bool, ...] = (False, True)
    class_weight: tuple[Literal["balanced"] | None, ...] = (None,)
    hidden_units: tuple[int, ...] = (0,)
    patience: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        for name, values in self._axes().items():
            if values == ():
                raise ParameterError(f"{name} has no values to choose from: expected one or more")
            for value in astuple(values) if isinstance(values, LogUniform) else values:
                checked: dict[str, Any] = {name: value}
                HeadSpec(**checked)

    @classmethod
    def from_text(cls, **texts: str | None) -> Self:
        """Return the space that the texts of some hyperparameters give; None leaves the default.

        A text is values with commas between them, such as ``0,0.2`` or ``none,balanced``, or for
        a number a range ``low:high``, drawn log-uniformly.

        Raises
        ------
        ParameterError
            A text means nothing, or see :class:`SearchSpace`.
        """
        given = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: _parse(name, text) for name, text in given.items()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the hyperparameters."""
        return tuple(one.name for one in fields(cls))

    @property
    def size(self) -> int | None:
        """The number of configurations, or None where a range makes them endless."""
        axes = self._axes().values()
        if any(isinstance(values, LogUniform) for values in axes):
            return None
        return prod(len(set(values)) for values in axes)

    def grid(self) -> tuple[HeadSpec, ...]:
        """Return every configuration once, the last hyperparameter varying fastest.

        Raises
        ------
        ParameterError
            A hyperparameter has a range.
        """
        axes = self._axes()
        for name, values in axes.items():
            if isinstance(values, LogUniform):
                raise ParameterError(
                    f"{name} is the range {values.low:g}:{values.high:g}: a grid expects values, "
                    "such as 1e-3,1e-2"
                )
        combinations = product(*(dict.fromkeys(values) for values in axes.values()))
        return tuple(HeadSpec(**dict(zip(axes, values, strict=True))) for values in combinations)

    def draw(self, n_trials: int, seed: int) -> tuple[HeadSpec, ...]:
        """Return ``n_trials`` different configurations drawn at random, or all if there are fewer.

        The same seed gives the same ones.
        """
        if self.size is not None and self.size <= n_trials:
            return self.grid()
        drawn: dict[HeadSpec, None] = {}
        for spec in self._draws(seed, n_trials * _MOST_DRAWS_EACH):
            drawn.setdefault(spec)
            if len(drawn) == n_trials:
                break
        return tuple(drawn)

    def _draws(self, seed: int, n: int) -> Iterator[HeadSpec]:
        """Yield ``n`` configurations at random."""
        rng = np.random.default_rng(seed)
        for _ in range(n):
            yield HeadSpec(**{name: _choose(rng, values) for name, values in self._axes().items()})

    def _axes(self) -> dict[str, Any]:
        """Return the hyperparameters and what each is chosen from."""
        return {name: getattr(self, name) for name in self.names()}


def _choose(rng: np.random.Generator, values: Any) -> Any:
    """Return one of the values."""
    if isinstance(values, LogUniform):
        return values.draw(rng)
    return values[rng.integers(len(values))]


def _read_bool(text: str) -> bool:
    """Return what ``yes`` or ``no`` says."""
    return {"yes": True, "no": False}[text]


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader that also knows ``none``."""
    return lambda text: None if text == "none" else read(text)


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "learning_rate": (float, "numbers such as 1e-3,1e-2, or a range such as 1e-4:1e-2"),
    "dropout": (float, "numbers such as 0,0.2, or a range"),
    "weight_decay": (float, "numbers such as 0,0.1, or a range such as 1e-3:1"),
    "label_smoothing": (float, "numbers such as 0,0.1, or a range"),
    "epochs": (int, "whole numbers such as 5,10"),
    "batch_size": (int, "whole numbers such as 32,64"),
    "standardize": (_read_bool, "yes, no or yes,no"),
    "class_weight": (_or_none(str), "none, balanced or none,balanced"),
    "hidden_units": (int, "whole numbers such as 0,480"),
    "patience": (_or_none(int), "whole numbers or none, such as none,3"),
}


def _parse(name: str, text: str) -> Any:
    """Return the values or the range that a text gives a hyperparameter."""
    read, expected = _READERS[name]
    low, is_range, high = text.partition(":")
    try:
        if is_range and read is float:
            return LogUniform(float(low), float(high))
        return tuple(read(part.strip().lower()) for part in text.split(","))
    except ParameterError:
        raise
    except (KeyError, ValueError) as error:
        raise ParameterError(f"{name} is {text!r}: expected {expected}") from error
