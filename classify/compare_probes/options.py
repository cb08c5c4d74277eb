"""What a user may choose of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from classify.probes import PROBES, Tuning
from classify.train_head.job import StreamOptions
from data_cache.errors import ParameterError

SelectBy = Literal["accuracy", "log_loss"]


@dataclass(frozen=True)
class CompareOptions(StreamOptions):
    """Which probes, how they are chosen, and what is measured.

    Attributes
    ----------
    probes : names in :data:`classify.probes.PROBES`, each once
    select_by : the figure by which a probe's hyperparameters are chosen on validation rows, and
        then the winner on all rows held out, see
        :attr:`classify.compare_probes.candidates.Candidate.held_out`; of equals the other figure
        decides. The log loss is that at the best temperature
    class_weight : ``"balanced"`` or None
    baseline : the model that the others are tested against, by its name or its probe's; None is
        the winner
    n_folds : folds of the training rows that the temperatures are fitted out of, 2 or more
    n_seeds : models for each probe that draws anything, of the seeds ``seed``, ``seed`` + 1, ...;
        the first is the one that is compared, the others show the spread

    Raises
    ------
    ParameterError
        A value is out of its range, or at odds with another.
    """

    probes: tuple[str, ...] = tuple(PROBES)
    select_by: SelectBy = "accuracy"
    class_weight: Literal["balanced"] | None = None
    baseline: str | None = None
    n_folds: int = 5
    n_seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probes(self.probes)
        if self.select_by not in get_args(SelectBy):
            raise ParameterError(f"select_by is {self.select_by!r}: expected accuracy or log_loss")
        if self.n_folds < 2 or self.n_seeds < 1:  # noqa: PLR2004
            raise ParameterError(
                f"{self.n_folds} folds, {self.n_seeds} seeds: expected 2 and 1 or more"
            )
        if self.no_test and (self.baseline or self.n_seeds > 1):
            raise ParameterError(
                "a baseline and several seeds are about figures of the test, which --no-test "
                "leaves alone: give one or the other"
            )

    def tuning(self) -> Tuning:
        """Return how hyperparameters are chosen."""
        return Tuning(self.select_by, self.class_weight, self.seed)


def check_probes(names: tuple[str, ...]) -> None:
    """Raise :class:`ParameterError` unless these are names of probes, each once, one or more."""
    unknown = [name for name in names if name not in PROBES]
    if unknown or not names:
        said = f"there is no probe {unknown[0]!r}" if unknown else "no probe was named"
        raise ParameterError(f"{said}: expected any of {', '.join(PROBES)}")
    if len(set(names)) < len(names):
        raise ParameterError(f"a probe is named twice in {', '.join(names)}: name each once")
