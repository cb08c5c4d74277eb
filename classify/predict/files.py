"""Predictions in words: lines of CSV, of JSON, or of a table to read, as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from classify.predict.classifiers import UNSURE, Prediction
from data_cache.errors import ParameterError

Format = Literal["csv", "jsonl", "table"]

_DIGITS = 6
_BAD = "-"


@dataclass(frozen=True)
class Wording:
    """How predictions become answers.

    Attributes
    ----------
    classes : the names of the k classes
    top_k : how many of the likeliest classes to tell, 1 to k
    threshold : an image whose likeliest class has a lower probability is :data:`UNSURE`
    """

    classes: tuple[str, ...]
    top_k: int = 1
    threshold: float = 0.0

    def check(self) -> None:
        """Raise :class:`ParameterError` for what these classes do not allow."""
        if not 1 <= self.top_k <= len(self.classes):
            raise ParameterError(
                f"top {self.top_k} of {len(self.classes)} classes: expected 1 to "
                f"{len(self.classes)}"
            )
        if not 0 <= self.threshold <= 1:
            raise ParameterError(f"threshold {self.threshold}: expected a probability, 0 to 1")
        if self.threshold and UNSURE in self.classes:
            raise ParameterError(
                f"a class of the run is called {UNSURE!r}, so a threshold would be ambiguous: "
                "leave it out"
            )

    def answer(self, prediction: Prediction) -> Answer:
        """Return what to tell of one image."""
        if prediction.probabilities is None:
            return Answer(prediction.id, error=prediction.reason)
        order = np.argsort(-prediction.probabilities, kind="stable")[: self.top_k]
        top = tuple((self.classes[i], float(prediction.probabilities[i])) for i in order)
        is_sure = top[0][1] >= self.threshold
        return Answer(prediction.id, top[0][0] if is_sure else UNSURE, top)


@dataclass(frozen=True)
class Answer:
    """What is told of one image.

    Attributes
    ----------
    path : as the user gave it
    label : the name of its class, or :data:`UNSURE`; empty for an image that cannot be read
    top : the likeliest classes with their probabilities, the likeliest first
    error : why the image cannot be read; empty for one that can
    """

    path: str
    label: str = ""
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


def lines(answers: Iterable[Answer], form: Format, wording: Wording) -> Iterator[str]:
    """Yield the lines of a file, line ends included: one for each answer, after any header."""
    return _WRITERS[form](answers, wording)


def _csv_lines(answers: Iterable[Answer], wording: Wording) -> Iterator[str]:
    """Yield ``path,class,probability[,class_1,probability_1,...],error``."""
    places = range(1, wording.top_k + 1) if wording.top_k > 1 else ()
    ranked = [f"{name}_{place}" for place in places for name in ("class", "probability")]
    yield _csv_line(["path", "class", "probability", *ranked, "error"])
    for one in answers:
        cells = [cell for name, value in one.top for cell in (name, _text(value))]
        cells = cells if ranked else []
        cells += [""] * (len(ranked) - len(cells))
        first = _text(one.top[0][1]) if one.top else ""
        yield _csv_line([one.path, one.label, first, *cells, one.error])


def _csv_line(cells: list[str]) -> str:
    """Return cells as a line of CSV, quoted where need be."""
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _json_lines(answers: Iterable[Answer], wording: Wording) -> Iterator[str]:
    """Yield objects: ``path`` with ``class``, ``probability`` and ``top``, or with ``error``."""
    for one in answers:
        said: dict[str, Any] = {"path": one.path}
        if one.error:
            said["error"] = one.error
        else:
            top = [{"class": name, "probability": round(p, _DIGITS)} for name, p in one.top]
            said |= {"class": one.label, "probability": top[0]["probability"]}
            said |= {"top": top} if wording.top_k > 1 else {}
        yield json.dumps(said, ensure_ascii=False) + "\n"


def _table_lines(answers: Iterable[Answer], wording: Wording) -> Iterator[str]:
    """Yield aligned columns; the path comes last, for nobody knows how long the longest is."""
    width = max(map(len, (*wording.classes, UNSURE, "class")))
    others = range(2, wording.top_k + 1)
    head = [f"{'class':{width}}  {'prob.':6}", *(f"{n}. {'':{width + 5}}" for n in others), "path"]
    yield "  ".join(head) + "\n"
    for one in answers:
        if one.error:
            yield f"{_BAD:{width}}  {_BAD:6}  {one.path}: {one.error}\n"
            continue
        cells = [f"{one.label:{width}}  {one.top[0][1]:.4f}"]
        cells += [f"{name:{width}}  {value:.4f}" for name, value in one.top[1:]]
        yield "  ".join([*cells, one.path]) + "\n"


def _text(probability: float) -> str:
    """Return a probability with six digits after the point."""
    return f"{probability:.{_DIGITS}f}"


_WRITERS = {"csv": _csv_lines, "jsonl": _json_lines, "table": _table_lines}
