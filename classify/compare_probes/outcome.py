"""What a comparison found: what its files, and what it prints, are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.compare_probes.candidates import Candidate, Field
from classify.compare_probes.differences import Difference
from classify.compare_probes.figures import Estimate, TestRows
from classify.compare_probes.options import CompareOptions
from classify.compare_probes.shared_rows import SharedRows
from classify.selection.test_log import Scorings


@dataclass(frozen=True)
class Tested:
    """The one look at the test.

    Attributes
    ----------
    split, ids, rows : the test's, the ids (n,) as UTF-8 bytes
    figures : of each candidate, by name
    differences : of each candidate but the baseline from it
    scorings : how often the test was scored by now; None where that cannot be counted
    """

    split: str
    ids: NDArray[np.bytes_]
    rows: TestRows
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: tuple[Difference, ...]
    scorings: Scorings | None


@dataclass(frozen=True)
class ProbeComparison:
    """Everything that the run is written from.

    Attributes
    ----------
    temperatures : of each candidate, by name; None where none could be fitted
    tested : None where the test was left alone
    """

    options: CompareOptions
    shared: SharedRows
    field: Field
    temperatures: Mapping[str, float | None]
    tested: Tested | None

    def seed_accuracies(self, candidate: Candidate) -> list[float]:
        """Return the test accuracy of a candidate's model of each seed, where there are several."""
        if self.tested is None or not candidate.seed_predictions:
            return []
        labels = self.tested.rows.labels
        further = [float((one == labels).mean()) for one in candidate.seed_predictions]
        return [self.tested.figures[candidate.name]["accuracy"].value, *further]
