"""A new run held against the one in use, the champion, on the champion's own test rows.

Both models are scored on the same rows, in one look at them, so chance hits both alike: what counts
is on how many rows one is right and the other wrong. The new model takes over only where it is not
worse: with 95% confidence its accuracy is no more than a margin below the champion's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier, logits_of
from classify.results.runs import Run, load_run
from classify.selection.division import LabeledSplits
from classify.statistics.intervals import mean_interval, paired_difference_interval
from classify.statistics.scoring import Score, score_logits
from classify.streams import Splits
from classify.train_head.warm_start import check_recipe
from data_cache.console import say
from data_cache.digests import as_keys
from data_cache.errors import ParameterError, RunError
from data_cache.rows import Rows

EXIT_CHAMPION_STAYS = 4
CHAMPION = "champion"
"""The name of its column in ``test_predictions.csv``."""

ONE_SIDED = 0.95
_TWO_SIDED = 2 * ONE_SIDED - 1

Outcome = Literal["not worse", "worse", "not shown"]
"""``not worse``: the difference is above -margin with 95% confidence. ``worse``: it is not, and it
is below 0 with 95% confidence. ``not shown``: neither, these rows cannot tell."""


@dataclass(frozen=True)
class Verdict:
    """A new model and the champion on the same n rows.

    ``difference`` is the new one's accuracy less the champion's; ``low`` and ``high`` are one-sided
    bounds of it, each held with 95% confidence.
    """

    n: int
    n_only_new: int
    n_only_champion: int
    difference: float
    low: float
    high: float
    margin: float

    @property
    def outcome(self) -> Outcome:
        """What may be said."""
        if self.low > -self.margin:
            return "not worse"
        return "worse" if self.high < 0 else "not shown"


@dataclass(frozen=True)
class Champion:
    """The model in use.

    Attributes
    ----------
    run : its run; ``model`` is the one selected there
    labels : (c,) the positions of the run's classes among those of the cache
    margin : how much worse, in accuracy, still counts as not worse
    test : the rows that it was tested on and never learned from, as a split of the cache
    left_out : rows by split and id, with a copy among those, that must not be learned from
    """

    run: Run
    model: LogitsClassifier
    labels: NDArray[np.int64]
    margin: float
    test: FrozenSplit
    left_out: frozenset[tuple[str, str]]

    def score(self, features: Any, labels: NDArray[np.int64]) -> Score:
        """Measure the champion on features (n, d), perhaps streamed, and labels (n,)."""
        known = self.labels[self.model.classes_]
        order = np.argsort(known)
        return score_logits(logits_of(self.model, features)[:, order], labels, known[order])

    def facts(self, labels: NDArray[np.int64], scores: Mapping[str, Score]) -> dict[str, Any]:
        """Return what ``metrics.json`` says, from the scores of the champion and the new model."""
        new, old = scores["new"], scores[CHAMPION]
        found = judge(
            new.predictions == labels, old.predictions == labels, self.margin, self.test.groups
        )
        return {
            "run": str(self.run.path),
            "model": self.run.selected,
            "accuracy": old.accuracy,
            "log_loss": old.log_loss,
            "new_accuracy": new.accuracy,
            "new_log_loss": new.log_loss,
            **vars(found),
            "confidence": ONE_SIDED,
            "outcome": found.outcome,
            "use": "new" if found.outcome == "not worse" else CHAMPION,
        }


class FrozenSplit:
    """A cache of which one split has some of its rows only."""

    def __init__(self, cache: LabeledSplits, split: str, chosen: NDArray[np.integer]) -> None:
        self.path, self.classes, self.split_names = cache.path, cache.classes, cache.split_names
        self.split = split
        self._cache, self._chosen = cache, chosen

    @property
    def groups(self) -> NDArray[np.bytes_] | None:
        """The groups of the rows, (n,), or None."""
        return self.rows(self.split).groups

    def rows(self, split: str) -> Rows:
        """Return what is known of the rows of a split."""
        rows = self._cache.rows(split)
        return rows.take(self._chosen) if split == self.split else rows

    def features(self, split: str) -> Any:
        """Return the features of a split, (n, d) float32, in memory or streamed."""
        features = self._cache.features(split)
        return features[self._chosen] if split == self.split else features


def open_champion(path: Path, cache: Splits, test_split: str | None, margin: float) -> Champion:
    """Return the champion of a cache whose test is ``test_split``.

    Raises
    ------
    RunError
        It is no run of the cache's recipe, or of other classes; it was never tested; or its test
        rows are no longer all in the test of the cache.
    ParameterError
        There are so few of those that nothing could be shown within ``margin``.
    """
    run = load_run(path)
    check_recipe(run, cache.path, cache.recipe, "--champion")
    if gone := [name for name in run.classes if name not in cache.classes]:
        raise RunError(
            f"{path} has the class {gone[0]!r}, and {cache.path} has it not: --champion takes a "
            f"run whose {len(run.classes)} classes are all among the cache's {len(cache.classes)}"
        )
    if test_split is None:
        raise RunError(f"{cache.path} has no test split to score {path} on: --champion needs one")
    chosen = _frozen_rows(run, cache, test_split)
    copies = _copies(cache, test_split, chosen)
    learned = run.learned_ids(run.selected)[0]
    taught = [at for (_, one), rows in copies.items() if one in learned for at in rows]
    if taught:
        say(f"{len(set(taught)):,} rows of the champion's test left out: it learned from copies")
        chosen = np.setdiff1d(chosen, taught)
    frozen = FrozenSplit(cache, test_split, chosen)
    _check_size(len(chosen), margin, frozen.groups)
    labels = np.array([cache.classes.index(name) for name in run.classes])
    return Champion(run, run.model(), labels, margin, frozen, frozenset(copies))


def judge(
    new_right: NDArray[np.bool_],
    champion_right: NDArray[np.bool_],
    margin: float,
    groups: NDArray | None = None,
) -> Verdict:
    """Compare two models by the rows, (n,), that each gets right.

    The bounds are those of :func:`classify.statistics.intervals.paired_difference_interval`, with
    groups of :func:`classify.statistics.intervals.mean_interval`.
    """
    n_only_new = int((new_right & ~champion_right).sum())
    n_only_champion = int((champion_right & ~new_right).sum())
    n = len(new_right)
    if groups is None:
        low, high = paired_difference_interval(n, n_only_new, n_only_champion, _TWO_SIDED)
    else:
        differences = new_right.astype(float) - champion_right
        low, high = mean_interval(differences, (-1, 1), groups, _TWO_SIDED)
    difference = (n_only_new - n_only_champion) / n
    return Verdict(n, n_only_new, n_only_champion, difference, low, high, margin)


def exit_code(run: Run) -> int:
    """Return what the command ends with: 4 where the champion stays in use, else 0."""
    told = run.metrics.get("champion")
    return EXIT_CHAMPION_STAYS if told and told["use"] == CHAMPION else 0


def _frozen_rows(run: Run, cache: Splits, test_split: str) -> NDArray[np.int64]:
    """Return the positions, in the test of a cache, of the rows that a run was tested on."""
    frozen = np.array([one.encode() for one in run.part_ids("test")], "S")
    if not len(frozen):
        raise RunError(
            f"{run.path} was scored on no test, so there are no rows to hold a new model against "
            "it: --champion takes a run that was"
        )
    found = cache.rows(test_split).ids
    if len(missing := np.setdiff1d(frozen, found)):
        raise RunError(
            f"{len(missing):,} of the {len(frozen):,} rows that {run.path} was tested on are not "
            f"in the test of {cache.path} (first: {missing[0].decode(errors='replace')}): the two "
            "can only be compared on the same test"
        )
    return np.flatnonzero(np.isin(found, frozen))


def _copies(
    cache: Splits, test_split: str, chosen: NDArray[np.int64]
) -> dict[tuple[str, str], list[int]]:
    """Return the rows of other splits, by split and id, whose content a chosen test row has.

    Each comes with the positions of those test rows.
    """
    keys = as_keys(cache.rows(test_split).content[chosen])
    copies: dict[tuple[str, str], list[int]] = {}
    for split in cache.split_names:
        if split == test_split:
            continue
        rows = cache.rows(split)
        for at in np.flatnonzero(np.isin(as_keys(rows.content), keys)):
            same = chosen[keys == as_keys(rows.content[at : at + 1])[0]]
            copies[split, rows.ids[at].decode()] = same.tolist()
    return copies


def _check_size(n: int, margin: float, groups: NDArray | None) -> None:
    """Raise :class:`ParameterError` where even two models that never differ would not pass."""
    if not n:
        raise ParameterError("no row of the champion's test is left to compare on")
    right = np.ones(n, bool)
    low = judge(right, right, margin, groups).low
    if low <= -margin:
        raise ParameterError(
            f"on {n:,} test rows nothing can be shown to be within {margin:g} of the champion's "
            f"accuracy, not even the champion itself: give --champion-margin {-low * 1.05:.2g} or "
            "more, or keep a larger test"
        )
