"""The table of a study: mean and SD over seeds, for every model and data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from classify.results.runs import write_table
from classify.results.summary import align
from classify.selection.test_log import Scorings
from classify.study.across import Across, compare_across
from classify.study.cells import Cell
from classify.study.plan import FIGURES, StudyPlan
from classify.study.scores import Scores
from data_cache.files import whole_file

UNITS_FILE, TABLE_FILE = "fits.csv", "table.csv"
MARKDOWN_FILE, LATEX_FILE = "table.md", "table.tex"
_ESCAPED = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


@dataclass(frozen=True)
class Entry:
    """A figure of a model on a data set: mean and standard deviation (n - 1) over seeds."""

    mean: float
    sd: float
    n_seeds: int


@dataclass(frozen=True)
class StudyTable:
    """Everything that a study found.

    Attributes
    ----------
    plan : what was asked for
    cells : the fits
    scores : their figures, by key
    scorings : how often the test was scored, by data set, of those just scored; None if not known
    """

    plan: StudyPlan
    cells: tuple[Cell, ...]
    scores: Scores
    scorings: Mapping[str, Scorings | None]

    @cached_property
    def entries(self) -> Mapping[tuple[str, str], Entry]:
        """The table: by model and data set, where the model has a cache of it."""
        return {
            (model, data): entry
            for model in self.plan.models
            for data in self.plan.data
            if (entry := self._entry(model, data)) is not None
        }

    @cached_property
    def across(self) -> Across | None:
        """What all data sets together say of the models that all of them have."""
        whole = [
            model
            for model in self.plan.models
            if all((model, data) in self.entries for data in self.plan.data)
        ]
        if not whole:
            return None
        figures = [[self.entries[model, data].mean for model in whole] for data in self.plan.data]
        return compare_across(
            whole,
            np.array(figures),
            lower_is_better=self.plan.figure == "log_loss",
            baseline=self.plan.baseline,
        )

    @property
    def text(self) -> str:
        """What ``compare-study`` prints, without a last line end."""
        notes = (*self._notes(), *self.counted())
        return "\n".join([*align(list(self._rows("±"))), "", *notes])

    def counted(self) -> Iterator[str]:
        """Yield how often the test of each data set was scored."""
        return map(self._words_on_test, self.plan.data)

    def write(self, folder: Path) -> None:
        """Write every fit as CSV, and the table as CSV, Markdown and LaTeX."""
        header = ["data", "backbone", "probe", "seed", "hyperparameters", *FIGURES]
        with whole_file(folder / UNITS_FILE) as path:
            write_table(path, header, self._fits())
        header = ["model", "data", "figure", "mean", "sd", "n_seeds"]
        with whole_file(folder / TABLE_FILE) as path:
            write_table(path, header, self._long())
        texts = {MARKDOWN_FILE: self._markdown(), LATEX_FILE: self._latex()}
        for name, text in texts.items():
            with whole_file(folder / name) as path:
                path.write_text(text, encoding="utf-8")

    def _words_on_test(self, data: str) -> str:
        """Say how often the test of a data set was scored."""
        if data not in self.scorings:
            return f"{data}: No further model was scored on this test."
        scorings = self.scorings[data]
        if scorings is None:
            return f"{data}: How often this test was scored is not known."
        return f"{data}: {scorings.sentence()}."

    def _entry(self, model: str, data: str) -> Entry | None:
        """Return the entry of a model and a data set; None where a figure is lacking."""
        figures = [
            self.scores[one.key][self.plan.figure]
            for one in self.cells
            if (one.unit.model, one.unit.data) == (model, data)
        ]
        there = [figure for figure in figures if figure is not None]
        if len(there) < max(1, len(figures)):
            return None
        return Entry(float(np.mean(there)), float(np.std(there, ddof=1)), len(there))

    def _rows(self, joint: str) -> Iterator[tuple[str, ...]]:
        """Yield the cells of the table, its header first."""
        across = self.across
        ranks = {} if across is None else dict(zip(across.models, across.ranks, strict=True))
        yield ("model", *self.plan.data, *(("mean rank",) if ranks else ()))
        for model in self.plan.models:
            figures = (self._cell(model, data, joint) for data in self.plan.data)
            rank = (f"{ranks[model]:.2f}" if model in ranks else "-",) if ranks else ()
            yield (model, *figures, *rank)

    def _cell(self, model: str, data: str, joint: str) -> str:
        """Return an entry as text."""
        entry = self.entries.get((model, data))
        return "-" if entry is None else f"{entry.mean:.4f} {joint} {entry.sd:.4f}"

    def _notes(self) -> list[str]:
        """Return what a reader of the table must know."""
        across = () if self.across is None else self.across.sentences()
        return [self.how(), *across]

    def how(self) -> str:
        """Say what was measured."""
        figure = self.plan.figure.replace("_", " ")
        return (
            f"Test {figure}, mean ± SD over {len(self.plan.seeds)} seeds, which draw validation "
            "rows and what a probe draws; hyperparameters were chosen on validation."
        )

    def _fits(self) -> Iterator[tuple[object, ...]]:
        """Yield every fit with its figures."""
        for one in self.cells:
            unit, reached = one.unit, self.scores[one.key]
            chosen = json.dumps(json.loads(one.hyperparameters))
            figures = (reached[name] for name in FIGURES)
            yield (unit.data, unit.backbone, unit.probe, unit.seed, chosen, *figures)

    def _long(self) -> Iterator[tuple[object, ...]]:
        """Yield the entries, a row each."""
        for (model, data), one in self.entries.items():
            yield (model, data, self.plan.figure, one.mean, one.sd, one.n_seeds)

    def _markdown(self) -> str:
        """Return the table as Markdown."""
        header, *rows = self._rows("±")
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
        how, *said = self._notes()
        return "\n".join([*lines, "", how, "", *(f"- {one}" for one in said), ""])

    def _latex(self) -> str:
        """Return the table as LaTeX, without any package."""
        header, *rows = self._rows(r"\pm")
        lines = [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\hline",
            _latex_row(header),
            r"\hline",
            *(_latex_row(row) for row in rows),
            r"\hline",
            r"\end{tabular}",
        ]
        notes = [f"% {one}" for one in self._notes()]
        return "\n".join([*notes, *lines, ""])


def _latex_row(row: Sequence[str]) -> str:
    """Return a row of the table in LaTeX."""
    cells = (f"${one}$" if r"\pm" in one else _escaped(one) for one in row)
    return f"{' & '.join(cells)} \\\\"


def _escaped(text: str) -> str:
    """Return text that LaTeX takes for itself."""
    return "".join(_ESCAPED.get(one, one) for one in text)
