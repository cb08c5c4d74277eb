"""Train on a cache: the Dense head, its cross-check, the choice between them, one look at the test.

:func:`train_head` is the one call behind the command ``train-head``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from classify.estimators import LogitsClassifier, logits_of
from classify.heads.dense import DenseHead
from classify.heads.spec import HeadSpec
from classify.report.run_page import write_report
from classify.results import runs
from classify.results.runs import DENSE, LOGISTIC, Run, load_run
from classify.results.tensorboard_log import check_tensorboard, write_curves
from classify.results.training import CacheFacts, Clock, FittedModels, TestScores, TrainingResult
from classify.selection.division import (
    TRAINING_SPLIT,
    VALIDATION_SPLIT,
    Division,
    LabeledSplits,
    Part,
    RareClass,
    divide,
)
from classify.selection.folds import FoldPlan
from classify.selection.leakage import LeftOut, rows_to_leave_out
from classify.selection.sealed_test import SealedTest, find_test_split
from classify.statistics.calibration import fit_temperature
from classify.statistics.scoring import known_codes, score
from classify.streams import Budget, Splits, StreamedSplits, streaming_budget
from classify.train_head.champion import CHAMPION, Champion, open_champion
from classify.train_head.comparison import compare
from classify.train_head.cross_validation import cross_validate
from classify.train_head.fitting import choose_logistic, fit_dense, for_epochs
from classify.train_head.out_of_fold import OutOfFold
from classify.train_head.refit import Refit, check_refit, check_test, refit_models
from classify.train_head.warm_start import WarmStart, check_unlearned, open_warm_start
from data_cache.cache import FeatureCache
from data_cache.console import import_keras, progress, say
from data_cache.errors import ParameterError
from data_cache.memory import parse_size


@dataclass(frozen=True)
class RowOptions:
    """Which rows of a cache do what.

    Attributes
    ----------
    seed : draws the validation rows, and all that training draws
    validation_split : share of the training rows drawn for validation where the cache has no split
        ``val``, in (0, 1)
    rare_class : see :data:`classify.selection.division.RareClass`
    test_split : name of the test split; by default ``test`` where there is one
    no_test : leave the test alone
    drop_leaks : leave out training and validation rows that have a copy in the test, or nearly
    exclude : a CSV with the columns ``split`` and ``id`` of rows to leave out
    verify : read the whole cache and compare its digest first, even if it was done before
    """

    seed: int = 0
    validation_split: float = 0.2
    rare_class: RareClass = "keep"
    test_split: str | None = None
    no_test: bool = False
    drop_leaks: bool = False
    exclude: str | None = None
    verify: bool = False


@dataclass(frozen=True)
class StreamOptions(RowOptions):
    """Which rows of a cache do what, and how many of their features are in memory at a time.

    Attributes
    ----------
    memory_limit : what features may take of memory, such as ``2GB``; where they would take more
        than half of it they are streamed. By default what is available

    Raises
    ------
    ParameterError
        The limit is no size.
    """

    memory_limit: str | None = None

    def __post_init__(self) -> None:
        if self.memory_limit is not None:
            parse_size(self.memory_limit)


@dataclass(frozen=True)
class TrainingOptions(HeadSpec, StreamOptions):
    """What a user may choose: the Dense head's configuration, and which rows do what.

    ``class_weight`` also holds for the cross-check.

    Attributes
    ----------
    n_folds : cross-validate with so many folds, 2 or more, and choose by what that finds
    n_repeats : times that folds are drawn
    refit : see :data:`classify.train_head.refit.Refit`
    init_from : a run whose Dense head to start from, see :mod:`classify.train_head.warm_start`
    champion : a run to score on its own test rows beside the new one, see
        :mod:`classify.train_head.champion`; ``champion_margin``, within (0, 1), is how much less
        accurate still counts as not worse
    tensorboard : write the Dense head's curves for TensorBoard too

    Raises
    ------
    ParameterError
        A value is out of its range, or at odds with another.
    """

    n_folds: int | None = None
    n_repeats: int = 1
    refit: Refit = "train"
    init_from: str | None = None
    champion: str | None = None
    champion_margin: float = 0.01
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        StreamOptions.__post_init__(self)
        check_refit(self.refit, no_test=self.no_test)
        self._check_predecessors()
        if self.n_folds is None and self.n_repeats != 1:
            raise ParameterError(f"repeats is {self.n_repeats} without folds: give --folds too")
        self.fold_plan()

    def _check_predecessors(self) -> None:
        """Raise :class:`ParameterError` where earlier runs are at odds with another choice."""
        if self.init_from is not None and self.n_folds is not None:
            raise ParameterError(
                "--folds measures heads on rows that the head of --init-from learned from: give "
                "one of them"
            )
        if self.champion is not None and (self.no_test or self.refit == "all"):
            option = "--no-test" if self.no_test else "--refit all"
            raise ParameterError(
                f"--champion scores two models on the test, and {option} leaves none to score on: "
                "give one of them"
            )
        if not 0 < self.champion_margin < 1:
            raise ParameterError(
                f"champion_margin is {self.champion_margin!r}: expected within (0, 1)"
            )

    def spec(self) -> HeadSpec:
        """Return the Dense head's configuration alone."""
        return HeadSpec(**{one.name: getattr(self, one.name) for one in fields(HeadSpec)})

    def fold_plan(self) -> FoldPlan | None:
        """Return how to cross-validate, or None."""
        if self.n_folds is None:
            return None
        return FoldPlan(
            self.n_folds, self.n_repeats, self.seed, self.validation_split, self.rare_class
        )


@dataclass(frozen=True)
class Job:
    """A training job between reading its rows and writing its run; ``test`` is under seal.

    ``budget`` is what features may take of memory where they are streamed, None where they are not.
    """

    cache: CacheFacts
    division: Division
    test: SealedTest | None
    output: Path
    overwrite: bool
    clock: Clock
    before: Predecessors
    budget: Budget | None = None


@dataclass(frozen=True)
class Predecessors:
    """What an earlier run brings: a head to start from, a champion to be held against."""

    start: WarmStart | None = None
    champion: Champion | None = None

    @property
    def head(self) -> DenseHead | None:
        """The head to start from."""
        return None if self.start is None else self.start.head


def train_head(
    cache: Path, output: Path, options: TrainingOptions | None = None, *, overwrite: bool = False
) -> Run:
    """Train both models on a cache, write the run folder ``output``, and return it.

    Raises
    ------
    HeadstartError
        See :meth:`data_cache.cache.FeatureCache.open`, :func:`classify.results.runs.check_output`,
        :func:`classify.selection.division.divide`,
        :func:`classify.selection.sealed_test.find_test_split` and
        :meth:`classify.heads.dense.DenseHead.fit`. Whatever is raised, ``output`` stays as it was.
    """
    options = options or TrainingOptions()
    if options.tensorboard:
        check_tensorboard()
    with begin(cache, output, options, overwrite=overwrite) as job:
        return finish(job, options)


@contextmanager
def begin(cache: Path, output: Path, options: RowOptions, *, overwrite: bool) -> Iterator[Job]:
    """Yield a job, its cache open; see :func:`train_head` for what is raised."""
    clock = Clock()
    runs.check_output(output, overwrite=overwrite)
    with FeatureCache.open(cache, check="always" if options.verify else "once") as features:
        facts = CacheFacts(features.path, features.classes, features.recipe, features.provenance)
        split = find_test_split(features, options.test_split)
        budget = _budget(features, options, split)
        splits = features if budget is None else StreamedSplits(features, budget)
        before = _predecessors(splits, options, split)
        tested = before.champion.test if before.champion else splits
        test = None if split is None or options.no_test else SealedTest(tested, split)
        with clock.time("read"):
            left_out = rows_to_leave_out(
                features, split, drop_leaks=options.drop_leaks, exclude=options.exclude
            )
            division = _divide(splits, options, split, before, left_out)
        yield Job(facts, division, test, output, overwrite, clock, before, budget)


def finish(
    job: Job,
    options: TrainingOptions,
    *,
    more_metrics: Mapping[str, Any] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Run:
    """Fit both models, score them, write the run, and return it.

    ``more_metrics`` go to ``metrics.json`` too; ``write_more`` may add files to the run's folder.
    """
    fitted, champion = fit_models(job, options), job.before.champion
    with job.clock.time("test"):
        test = None if options.refit == "all" else job.test
        scores = None if test is None else score_test(test, fitted, job.output, champion)
    facts = {**asdict(options), **(more_metrics or {})}
    width = job.division.training.features.shape[1]
    facts["streamed"] = job.budget and job.budget.facts(width)
    if champion and scores:
        facts["champion"] = champion.facts(scores.labels, scores.contest(fitted.selected))
    result = TrainingResult(job.cache, facts, job.division, fitted, scores)
    with runs.new_run(job.output, overwrite=job.overwrite) as folder:
        if write_more:
            write_more(folder)
        if options.tensorboard:
            write_curves(folder / runs.TENSORBOARD_FOLDER, fitted.dense.history_)
        result.write(folder, job.clock)
        write_report(folder, job.output.name)
    return load_run(job.output)


def fit_models(job: Job, options: TrainingOptions) -> FittedModels:
    """Fit both models to training rows, measure them, and refit them to what the run keeps."""
    division, clock = job.division, job.clock
    check_test(job.test, options.refit)
    with clock.time("logistic_regression"):
        path = choose_logistic(division.training, division.validation, options.class_weight)
    with clock.time("tensorflow_import"):
        import_keras()
    folds = _cross_validate(job, options)
    with clock.time("dense"):
        dense = _train_dense(job, _with_chosen_epochs(options.spec(), folds))
    models = {DENSE: dense, LOGISTIC: path.probe}
    measured = _measure(models, division.validation)
    refit_rows = job.test.learn() if job.test and options.refit == "all" else None
    with clock.time("refit"):
        kept = refit_models(
            dense,
            path,
            options.spec(),
            division,
            refit=options.refit,
            test=refit_rows,
            start=job.before.head,
        )
    return FittedModels(
        dense,
        path,
        **measured,
        kept=kept,
        refit=options.refit,
        refit_rows=refit_rows,
        temperatures=_temperatures(models, division.validation, folds),
        folds=folds,
    )


def score_test(
    test: SealedTest, fitted: FittedModels, run: Path, champion: Champion | None = None
) -> TestScores:
    """Open the seal and score the models that are kept, after every choice was made.

    A champion is scored in the same look at the test.
    """
    features = test.features()
    opened = test.open((*fitted.kept, *((CHAMPION,) if champion else ())), run)
    return TestScores(
        split=test.split,
        ids=test.ids,
        labels=opened.labels,
        scores={name: score(one, features, opened.labels) for name, one in fitted.kept.items()},
        scorings=opened.scorings,
        champion=None if champion is None else champion.score(features, opened.labels),
    )


def _budget(cache: FeatureCache, options: RowOptions, test_split: str | None) -> Budget | None:
    """Return what features may take of memory where they are streamed; or None."""
    if not isinstance(options, TrainingOptions):
        return None
    used = {TRAINING_SPLIT, VALIDATION_SPLIT, None if options.no_test else test_split}
    splits = [split for split in cache.split_names if split in used]
    return streaming_budget(cache, splits, options.memory_limit)


def _predecessors(cache: Splits, options: RowOptions, test_split: str | None) -> Predecessors:
    """Read the earlier runs that a training is to build on, and see that they fit the cache."""
    if not isinstance(options, TrainingOptions):
        return Predecessors()
    start = champion = None
    if options.init_from is not None:
        start = open_warm_start(Path(options.init_from), cache, options.hidden_units)
        check_unlearned(start, cache, None if options.no_test else test_split)
    if options.champion is not None:
        champion = open_champion(Path(options.champion), cache, test_split, options.champion_margin)
    return Predecessors(start, champion)


def _divide(
    cache: LabeledSplits,
    options: RowOptions,
    test_split: str | None,
    before: Predecessors,
    left_out: LeftOut,
) -> Division:
    """Return training and validation rows, and say how many there are."""
    division = divide(
        cache,
        fraction=options.validation_split,
        seed=options.seed,
        rare_class=options.rare_class,
        test_split=test_split,
        left_out=left_out | (before.champion.left_out if before.champion else frozenset()),
        is_learned=before.start.learned_mask if before.start else None,
    )
    origin = "drawn from them" if division.drawn else "the cache's own split"
    say(
        f"{len(division.training):,} rows to train on, {len(division.validation):,} to validate "
        f"on ({origin})"
    )
    return division


def _cross_validate(job: Job, options: TrainingOptions) -> OutOfFold | None:
    """Cross-validate over training and validation rows, if that was asked for."""
    plan = options.fold_plan()
    if plan is None:
        return None
    rows = job.division.training.join(job.division.validation)
    with job.clock.time("folds"):
        return cross_validate(rows, options.spec(), plan, job.cache.classes)


def _with_chosen_epochs(spec: HeadSpec, folds: OutOfFold | None) -> HeadSpec:
    """Return the configuration with the epochs that the folds chose, where they chose any."""
    if folds is None or spec.patience is None:
        return spec
    return for_epochs(spec, folds.n_epochs)


def _train_dense(job: Job, spec: HeadSpec) -> DenseHead:
    """Train the Dense head on training rows, with a progress bar on a terminal."""
    with progress("Training", total=spec.epochs, unit="epochs") as advance:
        return fit_dense(
            spec,
            len(job.cache.classes),
            job.division.training,
            job.division.validation,
            start=job.before.head,
            on_epoch=lambda _epoch, _row: advance(1),
        )


def _measure(models: Mapping[str, LogitsClassifier], rows: Part) -> dict[str, Any]:
    """Return the scores of both models on validation rows, and their comparison."""
    scores = {name: score(model, rows.features, rows.labels) for name, model in models.items()}
    predictions = (one.predictions for one in scores.values())
    return {"validation": scores, "comparison": compare(rows.labels, *predictions)}


def _temperatures(
    models: Mapping[str, LogitsClassifier], rows: Part, folds: OutOfFold | None
) -> dict[str, float | None]:
    """Return each model's temperature: of the logits out of fold, else of validation rows."""
    if folds is not None:
        return {name: fit_temperature(*folds.pooled(name)) for name in models}
    return {name: _temperature(model, rows) for name, model in models.items()}


def _temperature(model: LogitsClassifier, rows: Part) -> float | None:
    """Return the temperature of a model on rows that it was not fitted to; None without any."""
    known, codes = known_codes(model.classes_, rows.labels)
    return fit_temperature(logits_of(model, rows.features[known]), codes) if known.any() else None
