"""The rows of the table: models of runs, with what each took and what it reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.results.runs import (
    BASELINE,
    BASELINE_KIND,
    DENSE,
    HEAD_KIND,
    LOGISTIC,
    TUNED_KIND,
    RunFolder,
    ScoredRows,
    open_run,
)
from data_cache.errors import ParameterError, RunError

SELECTED, ALL = "selected", "all"
"""In place of a model's name: the one that won on validation; every one that has figures."""

_KINDS = {
    HEAD_KIND: "frozen features",
    "comparison": "frozen features",
    TUNED_KIND: "fine-tuned",
    BASELINE_KIND: "from scratch",
}
_PROBE_KEPT = "fine-tuning that kept the head"
_FITTING = {TUNED_KIND: "training"}
"""The part of a run's seconds that fitting is, by kind; by default it has the model's name."""

_MODELS = {DENSE: "Dense head", LOGISTIC: "logistic regression", BASELINE: "convolutional network"}


@dataclass(frozen=True)
class Entry:
    """A model of a run.

    Attributes
    ----------
    run : the folder
    model : its name in the run
    approach : kind of run and model, in words
    n_images : labeled images that it was fitted to or chosen on
    n_parameters : those that were trained; None where the run does not say
    seconds : that fitting took, without reading, extraction and the import of packages; of the
        whole command where the run does not say
    n_test : images that it was tested on
    accuracy, interval : on those, with the 95% interval; None where the test was left alone
    test : what was predicted of the test, or None
    is_copy : whether fine-tuning kept the model of another run, of which this is a copy
    """

    run: Path
    model: str
    approach: str
    n_images: int
    n_parameters: int | None
    seconds: float
    n_test: int
    accuracy: float | None
    interval: tuple[float, float] | None
    test: ScoredRows | None
    is_copy: bool = False

    def is_model_of(self, other: Entry) -> bool:
        """Tell whether this is a copy of another entry's model."""
        same = (self.model, self.test) == (other.model, other.test)
        return self.is_copy and self.test is not None and same


def read_entries(paths: Sequence[Path], models: Sequence[str] = (SELECTED,)) -> tuple[Entry, ...]:
    """Read the models of runs, by name, :data:`SELECTED` or :data:`ALL`; in the order of the runs.

    A run that lacks some of the models gives those that it has.

    Raises
    ------
    RunError
        A folder is no run, is not whole, or has none of the models.
    ParameterError
        A run is given twice.
    """
    if twice := _given_twice(paths):
        raise ParameterError(f"{twice} is given twice: give each run once")
    return tuple(entry for path in paths for entry in _read_run(open_run(path), models))


def _given_twice(paths: Sequence[Path]) -> Path | None:
    """Return a path to a folder that an earlier path leads to as well."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            return path
        seen.add(path.resolve())
    return None


def _read_run(run: RunFolder, models: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of a run."""
    there = _models(run)
    wanted = {run.selected if name == SELECTED else name for name in models}
    names = [name for name in there if name in wanted or ALL in wanted]
    if not names:
        raise RunError(
            f"{run.path} has no model {' or '.join(sorted(wanted))}: it has {', '.join(there)}"
        )
    for name in names:
        try:
            yield _entry(run, name)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{run.path} is not whole ({error}): train again") from error


def _models(run: RunFolder) -> list[str]:
    """Return the names of the models that a run has figures of.

    Of a head that fine-tuning kept it is the selected one: the rest is a copy of the head's run.
    """
    if _keeps_head(run):
        return [run.selected]
    return [
        name
        for name, figures in run.metrics.items()
        if isinstance(figures, dict) and "test_accuracy" in figures
    ]


def _keeps_head(run: RunFolder) -> bool:
    """Tell whether fine-tuning was tried, and the head it started from is what the run has."""
    return run.kind == HEAD_KIND and "fine_tuning" in run.metrics


def _n_refitted(run: RunFolder) -> int:
    """Return how many test rows a run learned from in the end."""
    return len(run.part_ids("refit")) if run.metrics.get("refit") == "all" else 0


def _entry(run: RunFolder, name: str) -> Entry:
    """Return a model of a run."""
    facts, figures = run.metrics, run.metrics[name]
    interval = figures["test_accuracy_ci95"]
    approach = _PROBE_KEPT if _keeps_head(run) else _KINDS.get(run.kind, run.kind)
    fitting = _FITTING.get(run.kind, name)
    same_size = facts["trainable_parameters"] if name in (DENSE, BASELINE) else None
    return Entry(
        run=run.path,
        model=name,
        approach=f"{approach}, {_MODELS.get(name, name.replace('_', ' '))}",
        n_images=int(facts["n_train"]) + int(facts["n_validation"]) + _n_refitted(run),
        n_parameters=figures.get("trainable_parameters", same_size),
        seconds=float(facts["seconds_by_part"].get(fitting, facts["seconds"])),
        n_test=int(facts["n_test"]),
        accuracy=figures["test_accuracy"],
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        test=run.test_predictions(name) if interval is not None else None,
        is_copy=_keeps_head(run),
    )
