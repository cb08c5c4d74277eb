"""What a study measures, as its TOML file says.

::

    probes = ["logistic_regression", "ridge"]  # all there are, where left out
    seeds = [0, 1, 2, 3, 4]  # mean and SD are over these
    figure = "accuracy"  # of the table
    baseline = "mobilenet_96:ridge"  # all pairs are tested, where left out
    validation_split = 0.2
    test_split = "test"

    [data.fashion]  # a cache for each backbone
    mobilenet_96 = "fashion96.h5"
    mobilenet_160 = "fashion160.h5"

    [data.pets]
    mobilenet_96 = "pets96.h5"
    mobilenet_160 = "pets160.h5"

Paths are relative to the file's folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from classify.compare_probes.options import check_probes
from classify.probes import PROBES
from data_cache.errors import ParameterError

Figure = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
"""What is measured on the test: shares in [0, 1], the log loss in nats."""

FIGURES: tuple[Figure, ...] = get_args(Figure)

_NAME = re.compile(r"[\w.+-]+")
_FEWEST_SEEDS = 2
_KINDS = {
    "probes": list,
    "seeds": list,
    "figure": str,
    "baseline": str,
    "test_split": str,
    "data": dict,
}


@dataclass(frozen=True)
class Unit:
    """One fit: a probe on a backbone's features of a data set, with a seed."""

    data: str
    backbone: str
    probe: str
    seed: int

    @property
    def model(self) -> str:
        """Backbone and probe: what is compared across data sets."""
        return f"{self.backbone}:{self.probe}"


@dataclass(frozen=True)
class StudyPlan:
    """What to measure; see the module.

    Attributes
    ----------
    data : for each data set, the cache of each backbone
    probes : names in :data:`classify.probes.PROBES`
    seeds : of the drawn validation rows and of all that probes draw; two or more
    figure : of the table and of the tests
    baseline : a model that the others are tested against, ``BACKBONE:PROBE``; None for all pairs
    validation_split, test_split : see :class:`classify.train_head.job.RowOptions`

    Raises
    ------
    ParameterError
        A value is none that can be.
    """

    data: Mapping[str, Mapping[str, Path]]
    probes: tuple[str, ...] = tuple(PROBES)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    figure: Figure = "accuracy"
    baseline: str | None = None
    validation_split: float = 0.2
    test_split: str | None = None

    def __post_init__(self) -> None:
        check_probes(self.probes)
        if len(set(self.seeds)) < max(_FEWEST_SEEDS, len(self.seeds)) or min(self.seeds) < 0:
            raise ParameterError(
                f"seeds are {list(self.seeds)}: expected two or more different ones, 0 or more"
            )
        if self.figure not in FIGURES:
            raise ParameterError(f"figure is {self.figure!r}: expected one of {', '.join(FIGURES)}")
        if not 0 < self.validation_split < 1:
            raise ParameterError(f"validation_split is {self.validation_split}: expected in (0, 1)")
        if self.baseline is not None and self.baseline not in self.models:
            raise ParameterError(
                f"baseline is {self.baseline!r}: expected one of {', '.join(self.models)}"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """What is compared: every backbone of any data set with every probe."""
        return tuple(dict.fromkeys(unit.model for unit in self.units()))

    def units(self) -> Iterator[Unit]:
        """Yield every fit, in an order in which those of one cache and seed are together."""
        for data, caches in self.data.items():
            for backbone in caches:
                for seed in self.seeds:
                    for probe in self.probes:
                        yield Unit(data, backbone, probe, seed)


def read_plan(path: Path) -> StudyPlan:
    """Read a study from a TOML file.

    Raises
    ------
    ParameterError
        It cannot be read, is no TOML, or says what cannot be.
    """
    try:
        with path.open("rb") as stream:
            told = tomllib.load(stream)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path} cannot be read: {error}") from error
    try:
        return StudyPlan(**_checked(told, path.parent))
    except (ParameterError, TypeError) as error:
        raise ParameterError(f"{path}: {error}") from error


def _checked(told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a plan from what a TOML file says, after a look at their types."""
    known = [one.name for one in fields(StudyPlan)]
    if unknown := sorted(told.keys() - set(known)):
        raise ParameterError(f"there is no setting {unknown[0]!r}: expected {', '.join(known)}")
    for name, kind in _KINDS.items():
        if name in told and not isinstance(told[name], kind):
            raise ParameterError(f"{name} is {told[name]!r}: expected a {kind.__name__}")
    if not told.get("data"):
        raise ParameterError("it names no data: expected a table [data.NAME] for each data set")
    lists = {name: tuple(told[name]) for name in ("probes", "seeds") if name in told}
    if not all(type(seed) is int for seed in lists.get("seeds", ())):
        raise ParameterError(f"seeds are {told['seeds']}: expected whole numbers")
    data = {name: _caches(name, caches, folder) for name, caches in told["data"].items()}
    return {**told, **lists, "data": data}


def _caches(name: str, caches: Any, folder: Path) -> dict[str, Path]:
    """Return the caches of a data set by backbone; names make files' names, so they are plain."""
    if not isinstance(caches, dict) or not caches:
        raise ParameterError(f"data.{name} is {caches!r}: expected BACKBONE = CACHE, a line each")
    for word in (name, *caches):
        if not _NAME.fullmatch(word) or word.strip(".") == "":
            raise ParameterError(f"the name {word!r}: expected letters, digits and any of _ . + -")
    if wrong := [one for one in caches.values() if not isinstance(one, str)]:
        raise ParameterError(f"data.{name} has the cache {wrong[0]!r}: expected its path as text")
    return {backbone: folder / path for backbone, path in caches.items()}
