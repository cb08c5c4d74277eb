"""The library call behind ``compare-study``: a plan in, a folder with cells and a table out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from classify.compare_probes.shared_rows import SharedRows, share_rows_of_seeds
from classify.report.page import write_page
from classify.results.runs import REPORT_FILE
from classify.selection.test_log import Scorings
from classify.study.cells import Cell, cache_digest, cell_key, make_cells, read_cell
from classify.study.page import study_page
from classify.study.plan import StudyPlan, Unit
from classify.study.scores import Scores, read_scores, score_cells, write_scores
from classify.study.table import StudyTable
from classify.train_head.job import RowOptions
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
    _check_caches(plan)
    keys = _keys(plan)
    missing = [one for one in keys.items() if read_cell(folder, *one) is None]
    known = read_scores(folder)
    shared = _share(plan, _unfinished(missing, keys, known))
    say(f"{len(keys) - len(missing):,} of {len(keys):,} fits are there")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / _MARK) as path:
        path.write_text(text, encoding="utf-8")
    make_cells(folder, missing, shared, plan)
    cells = [cell for one in keys.items() if (cell := read_cell(folder, *one)) is not None]
    scores = {one.key: known[one.key] for one in cells if one.key in known}
    scorings = _score(cells, scores, shared, folder)
    table = StudyTable(plan, tuple(cells), scores, scorings)
    table.write(folder)
    with whole_file(folder / REPORT_FILE) as path:
        write_page(study_page(table, folder.name), path)
    return table


def _unfinished(
    missing: Sequence[tuple[Unit, str]], keys: Mapping[Unit, str], known: Scores
) -> set[str]:
    """Return the data sets that have something left to fit or to score."""
    to_score = {unit.data for unit, key in keys.items() if key not in known}
    return to_score | {unit.data for unit, _ in missing}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a study."""
    check_creatable(folder.resolve())
    is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used and not (folder / _MARK).is_file():
        raise OutputExistsError(
            f"{folder} is or holds something else than a study: choose another --output"
        )


def _check_caches(plan: StudyPlan) -> None:
    """Refuse a plan of a cache that is not there."""
    for data, caches in plan.data.items():
        for path in caches.values():
            if not path.exists():
                raise CacheNotFoundError(f"{path}, of data.{data}, is not there: extract it first")


def _share(plan: StudyPlan, wanted: Collection[str]) -> dict[tuple[str, int], SharedRows]:
    """Return the rows of the data sets that are wanted, divided as each seed does it."""
    shared: dict[tuple[str, int], SharedRows] = {}
    options = RowOptions(validation_split=plan.validation_split, test_split=plan.test_split)
    for data in filter(wanted.__contains__, plan.data):
        caches = plan.data[data]
        say(f"Reading the rows of {data}")
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
    scores: Scores,
    shared: Mapping[tuple[str, int], SharedRows],
    folder: Path,
) -> dict[str, Scorings | None]:
    """Score the cells that ``scores`` lacks, and add them; return the counts by data set."""
    counts: dict[str, Scorings | None] = {}
    for (data, _), rows in shared.items():
        new = [one for one in cells if one.unit.data == data and one.key not in scores]
        if new and rows.test is not None:
            found, counts[data] = score_cells(new, rows.test, folder)
            scores |= found
            write_scores(folder, scores)
    return counts
