"""What a user may choose of a learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from classify.compare_probes.options import check_probes
from data_cache.errors import ParameterError

FEWEST_DRAWS = 5


@dataclass(frozen=True)
class CurveOptions:
    """What a user may choose of a learning curve.

    Attributes
    ----------
    probes : names in :data:`classify.probes.PROBES`, each once
    targets : accuracies in (0, 1) to say the number of images for
    n_draws : subsets of each size, :data:`FEWEST_DRAWS` or more
    on_test : score on the test, not on folds; every fit counts as a model scored on it
    validation_split : share of any number of images that hyperparameters are chosen on, in (0, 1)
    select_by : see :class:`classify.probes.Tuning`
    seed : of all that is drawn
    test_split, drop_leaks, exclude, verify : see :class:`classify.train_head.job.RowOptions`

    Raises
    ------
    ParameterError
        A value is out of its range.
    """

    probes: tuple[str, ...] = ("logistic_regression",)
    targets: tuple[float, ...] = ()
    n_draws: int = FEWEST_DRAWS
    on_test: bool = False
    validation_split: float = 0.2
    select_by: Literal["accuracy", "log_loss"] = "log_loss"
    seed: int = 0
    test_split: str | None = None
    drop_leaks: bool = False
    exclude: str | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        check_probes(self.probes)
        if self.n_draws < FEWEST_DRAWS:
            raise ParameterError(f"{self.n_draws} draws: expected {FEWEST_DRAWS} or more")
        if not 0 < self.validation_split < 1:
            raise ParameterError(f"validation_split is {self.validation_split}: expected in (0, 1)")
        if not all(0 < target < 1 for target in self.targets):
            raise ParameterError(f"a target of {self.targets} is not within (0, 1)")
