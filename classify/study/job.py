"""The library call behind ``compare-study``: a plan in, a folder with cells and a table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from classify.compare_probes.shared_rows import SharedRows, share_rows_of_seeds
from classify.study.cells import Cell, cache_digest, cell_key, make_cells, read_cell
from classify.study.plan import StudyPlan, Unit
from classify.study.scores import Scores, read_scores, score_cells, write_scores
from classify.study.table import StudyTable
from classify.train import RowOptions
from data_cache.console import say
from data_cache.errors import CacheError, CacheNotFoundError, OutputExistsError
from data_cache.files import check_creatable, whole_file

_MARK = "study.toml"
"""In every study's folder: a copy of what it was asked for last."""


def compare_study(plan: StudyPlan, folder: Path, text: str = "") -> StudyTable:
    """Make the cells that are missing, score those that were not, write the table, return it.

    Nothing of the test's labels is known before every cell is there. ``text`` is what the plan was
    read from, for the copy in the folder.

    Raises
    ------
    OutputExistsError
        ``folder`` holds something, and is no study's.
    HeadstartError
        See :func:`classify.compare_probes.shared_rows.share_rows` and
        :func:`classify.study.cells.make_cells`. Cells that are finished stay.
    """
    _check_folder(folder)
    shared = _share(plan)
    keys = _keys(plan)
    missing = [one for one in keys.items() if read_cell(folder, *one) is None]
    say(f"{len(keys) - len(missing):,} of {len(keys):,} fits are there")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / _MARK) as path:
        path.write_text(text, encoding="utf-8")
    make_cells(folder, missing, shared, plan)
    cells = [cell for one in keys.items() if (cell := read_cell(folder, *one)) is not None]
    scores = _score(cells, shared, plan, folder)
    table = StudyTable(plan, tuple(cells), scores)
    table.write(folder)
    return table


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a study."""
    check_creatable(folder.resolve())
    is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used and not (folder / _MARK).is_file():
        raise OutputExistsError(
            f"{folder} is or holds something else than a study: choose another --output"
        )


def _share(plan: StudyPlan) -> dict[tuple[str, int], SharedRows]:
    """Return the rows of every data set, divided as each seed does it."""
    shared: dict[tuple[str, int], SharedRows] = {}
    for data, caches in plan.data.items():
        for path in caches.values():
            if not path.exists():
                raise CacheNotFoundError(f"{path}, of data.{data}, is not there: extract it first")
        options = RowOptions(validation_split=plan.validation_split, test_split=plan.test_split)
        divided = share_rows_of_seeds(list(caches.values()), options, plan.seeds)
        if divided[plan.seeds[0]].test is None:
            raise CacheError(f"data.{data} has no test split: a study is scored on one")
        shared |= {(data, seed): rows for seed, rows in divided.items()}
    return shared


def _keys(plan: StudyPlan) -> dict[Unit, str]:
    """Return the key of every unit's cell."""
    paths = {path for caches in plan.data.values() for path in caches.values()}
    digests = {path: cache_digest(path) for path in paths}
    return {unit: cell_key(unit, plan, digests) for unit in plan.units()}


def _score(
    cells: Sequence[Cell],
    shared: Mapping[tuple[str, int], SharedRows],
    plan: StudyPlan,
    folder: Path,
) -> Scores:
    """Return the figures of all cells; those that were not scored yet are, and are counted."""
    known = read_scores(folder)
    scores = {one.key: known[one.key] for one in cells if one.key in known}
    for data in plan.data:
        new = [one for one in cells if one.unit.data == data and one.key not in scores]
        test = shared[data, plan.seeds[0]].test
        if new and test is not None:
            scores |= score_cells(new, test, folder)
            write_scores(folder, scores)
    return scores
