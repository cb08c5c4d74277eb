"""Sweep: train many configurations of the head, choose one on validation, finish it as a run.

:func:`sweep_heads` is the one call behind the command ``sweep-heads``. The test split stays under
seal until the choice is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import isnan, nan
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from classify.heads.batches import TrainingData
from classify.heads.many import TrainedHead, train_many_heads
from classify.heads.spec import HeadSpec
from classify.results.runs import SWEEP_FILE, TENSORBOARD_FOLDER, Run, write_table
from classify.results.tensorboard_log import Session, check_tensorboard, write_sessions
from classify.selection.division import Division
from classify.statistics import metrics
from classify.sweep_heads.cluster import train_on_cluster
from classify.sweep_heads.search import SearchSpace
from classify.train_head.job import RowOptions, TrainingOptions, begin, finish
from data_cache.connecting import n_local_workers
from data_cache.console import progress, say
from data_cache.errors import ParameterError, TrainingError

SelectBy = Literal["accuracy", "log_loss", "balanced_accuracy", "macro_f1"]
"""The validation figure that chooses; of the log loss the lowest is best."""

_SPEC_FIELDS = tuple(one.name for one in fields(HeadSpec) if one.name != "seed")


@dataclass(frozen=True)
class SweepOptions(RowOptions):
    """What a user may choose of a sweep.

    ``seed`` also draws the configurations; the first head of each has it, and so has the winner.

    Attributes
    ----------
    space : what to choose the hyperparameters from
    n_trials : configurations to draw at random, 1 or more; None tries every one of the space
    n_seeds : heads for each configuration, 1 or more, of the seeds ``seed``, ``seed`` + 1, ...:
        a configuration is judged by the mean over them
    select_by : the figure to judge by. The log loss weighs how sure a head is on every row, so on
        a few hundred rows chance moves it less than the accuracy, which only counts mistakes
    tensorboard : write every trial, and the winner's curves, for TensorBoard too
    cluster : ``tcp://host:8786`` or ``local:N``, whose workers train the heads; None: this process

    Raises
    ------
    ParameterError
        A value is out of its range.
    """

    space: SearchSpace = field(default_factory=SearchSpace)
    n_trials: int | None = 200
    n_seeds: int = 1
    select_by: SelectBy = "log_loss"
    tensorboard: bool = False
    cluster: str | None = None

    def __post_init__(self) -> None:
        for name in ("n_trials", "n_seeds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ParameterError(f"{name} is {value}: expected 1 or more")
        if self.cluster is not None:
            n_local_workers(self.cluster)
        if self.select_by not in get_args(SelectBy):
            expected = ", ".join(get_args(SelectBy))
            raise ParameterError(f"select_by is {self.select_by!r}: expected one of {expected}")

    def specs(self) -> tuple[HeadSpec, ...]:
        """Return the configurations to try."""
        if self.n_trials is None:
            return self.space.grid()
        return self.space.draw(self.n_trials, self.seed)

    def winner(self, spec: HeadSpec) -> TrainingOptions:
        """Return how to train the configuration that won."""
        rows = {one.name: getattr(self, one.name) for one in fields(RowOptions)}
        return TrainingOptions(**asdict(spec) | rows, tensorboard=self.tensorboard)


@dataclass(frozen=True)
class HeadScore:
    """What a head reaches on validation rows: shares in [0, 1], the log loss in nats.

    All are NaN for a head that diverged. ``n_epochs`` made the head.
    """

    accuracy: float
    log_loss: float
    balanced_accuracy: float
    macro_f1: float
    n_epochs: int


@dataclass(frozen=True)
class Trial:
    """A configuration, its number from 1, and the score of its head of each seed."""

    number: int
    spec: HeadSpec
    scores: Mapping[int, HeadScore]

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over the seeds; NaN where a head diverged."""
        return float(np.mean([getattr(score, figure) for score in self.scores.values()]))

    def merit(self, select_by: SelectBy) -> tuple[float, float]:
        """Return what to sort by, more is better: the figure, then the log loss."""
        figure = self.mean(select_by)
        loss = self.mean("log_loss")
        if not np.isfinite([figure, loss]).all():
            return -np.inf, -np.inf
        return (-figure if select_by == "log_loss" else figure), -loss


def sweep_heads(
    cache: Path, output: Path, options: SweepOptions | None = None, *, overwrite: bool = False
) -> Run:
    """Try configurations on a cache, then train the best as ``train-head`` does; return its run.

    The run also holds ``sweep.csv``, a row for each head, and ``metrics.json`` says under
    ``sweep`` what was tried.

    Raises
    ------
    HeadstartError
        See :func:`classify.train_head.job.train_head`. Whatever is raised, ``output`` stays as it
        was.
    TrainingError
        Every configuration diverged.
    """
    options = options or SweepOptions()
    specs = options.specs()
    if options.tensorboard:
        check_tensorboard()
    with begin(cache, output, options, overwrite=overwrite) as job:
        with job.clock.time("sweep"):
            trials = rank(
                run_trials(specs, job.division, len(job.cache.classes), options), options.select_by
            )
        best = trials[0]
        say(
            f"Best of {len(trials)} on validation, so its figures there are optimistic: "
            f"{describe(best)}"
        )
        return finish(
            job,
            options.winner(best.spec),
            more_metrics={"sweep": _facts(trials, options)},
            write_more=lambda folder: _write(folder, trials, options),
        )


def run_trials(
    specs: Sequence[HeadSpec], division: Division, n_classes: int, options: SweepOptions
) -> list[Trial]:
    """Train every configuration with every seed and score it on validation, in the order given."""
    seeds = range(options.seed, options.seed + options.n_seeds)
    heads = [replace(spec, seed=seed) for spec in specs for seed in seeds]
    training, validation = division.training, division.validation
    data = TrainingData(
        training.features, training.labels, n_classes, validation.features, validation.labels
    )
    scores: dict[int, HeadScore] = {}
    n_epochs = sum(spec.epochs for spec in heads)
    with progress(f"Training {len(heads):,} heads", total=n_epochs, unit="epochs") as advance:
        if options.cluster is not None:
            scores |= train_on_cluster(heads, data, options.cluster, _score, advance)
        else:
            trained = train_many_heads(heads, data, advance=advance)
            scores |= ((position, _score(head, data)) for position, head in trained)
    return [
        Trial(
            number + 1,
            spec,
            {seed: scores[number * len(seeds) + at] for at, seed in enumerate(seeds)},
        )
        for number, spec in enumerate(specs)
    ]


def _score(head: TrainedHead, data: TrainingData) -> HeadScore:
    """Return the figures of a head on the validation rows."""
    return measure(data.validation_labels, head.validation_logits, n_epochs=head.n_epochs)


def measure(
    labels: NDArray[np.integer], logits: NDArray[np.floating], *, n_epochs: int
) -> HeadScore:
    """Return the figures of logits (m, k) on labels (m,)."""
    if not np.isfinite(logits).all():
        return HeadScore(nan, nan, nan, nan, n_epochs)
    predictions, n_classes = logits.argmax(axis=1), logits.shape[1]
    return HeadScore(
        accuracy=metrics.accuracy(labels, predictions),
        log_loss=metrics.log_loss(labels, logits),
        balanced_accuracy=metrics.balanced_accuracy(labels, predictions, n_classes),
        macro_f1=metrics.macro_f1(labels, predictions, n_classes),
        n_epochs=n_epochs,
    )


def rank(trials: Sequence[Trial], select_by: SelectBy) -> list[Trial]:
    """Return the trials from best to worst; of equals the first tried comes first.

    Raises
    ------
    TrainingError
        Every trial diverged.
    """
    ranked = sorted(trials, key=lambda trial: trial.merit(select_by), reverse=True)
    if np.isinf(ranked[0].merit(select_by)[0]):
        raise TrainingError(
            f"all {len(trials)} configurations diverged: try smaller learning rates, or "
            "standardized features"
        )
    return ranked


def describe(trial: Trial) -> str:
    """Return a trial's hyperparameters, as options of ``train-head``."""
    defaults = HeadSpec()
    options = []
    for name in _SPEC_FIELDS:
        value = getattr(trial.spec, name)
        if value != getattr(defaults, name):
            flag = f"--{name.replace('_', '-')}"
            options.append(flag if value is True else f"{flag} {value}")
    return " ".join(options) or "the defaults"


def _write(folder: Path, trials: Sequence[Trial], options: SweepOptions) -> None:
    """Write the files that a sweep adds to a run."""
    write_trials(folder / SWEEP_FILE, trials)
    if options.tensorboard:
        write_sessions(folder / TENSORBOARD_FOLDER / "trials", _sessions(trials))


def _sessions(trials: Sequence[Trial]) -> Iterator[Session]:
    """Yield each head as TensorBoard's hparams view takes it."""
    for trial in trials:
        settings = {name: getattr(trial.spec, name) for name in _SPEC_FIELDS}
        for seed, score in trial.scores.items():
            name = f"{trial.number:05d}"
            yield Session(f"{name}-seed-{seed}", name, settings, asdict(score))


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Write a row for each head, from the best configuration to the worst."""
    figures = [one.name for one in fields(HeadScore)]
    write_table(path, ["rank", "trial", *_SPEC_FIELDS, "seed", *figures], _rows(trials))


def _rows(trials: Sequence[Trial]) -> Iterator[tuple[object, ...]]:
    """Yield the cells of each head."""
    for place, trial in enumerate(trials, start=1):
        settings = [getattr(trial.spec, name) for name in _SPEC_FIELDS]
        for seed, score in trial.scores.items():
            yield (place, trial.number, *settings, seed, *asdict(score).values())


def _facts(trials: Sequence[Trial], options: SweepOptions) -> dict[str, Any]:
    """Return what ``metrics.json`` says of the sweep."""
    best = trials[0]
    figures = [one.name for one in fields(HeadScore)]
    return {
        "n_trials": len(trials),
        "n_heads": sum(len(trial.scores) for trial in trials),
        "n_diverged": sum(isnan(trial.mean("accuracy")) for trial in trials),
        "select_by": options.select_by,
        "seeds": list(best.scores),
        "trial": best.number,
        "mean_over_seeds": {name: best.mean(name) for name in figures},
    }
