"""The page of a study."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

from classify.report.charts import Chart, RowSeries, row_chart
from classify.report.page import (
    NOTHING,
    Cell,
    Page,
    Section,
    Sentences,
    Table,
    Tile,
    Words,
    number_cell,
)
from classify.report.tables import plain
from classify.study.across import Across
from classify.study.table import StudyTable

_MOST_SETS = 6
"""The dots of more data sets would cover each other."""


def study_page(table: StudyTable, name: str) -> Page:
    """Return the page of a study; ``name`` is what its folder is called."""
    means = (_means(table),) if len(table.plan.data) <= _MOST_SETS else ()
    sections = [
        Section("Models and data sets", (*means, Words(table.how()), _table(table))),
        *([] if table.across is None else [_section_across(table.across)]),
        Section("Tests scored by the last call", (Sentences(tuple(table.counted())),)),
        _fits(table),
    ]
    return Page(f"Study: {name}", _lead(table), tuple(_tiles(table)), tuple(sections))


def _lead(table: StudyTable) -> str:
    """Say in one sentence what was measured on what."""
    plan = table.plan
    return (
        f"{len(plan.models)} models on {', '.join(plan.data)}: {plain(plan.figure)} on the test, "
        f"{len(plan.seeds)} seeds."
    )


def _tiles(table: StudyTable) -> Iterator[Tile]:
    """Yield the figures in large letters."""
    if table.across is not None:
        rank, model = min(zip(table.across.ranks, table.across.models, strict=True))
        note = f"mean rank {rank:.2f}, on the tests themselves: that flatters it"
        yield Tile("First by rank", model, note)
    yield Tile("Models", f"{len(table.plan.models):,}", "backbone and probe")
    yield Tile("Data sets", f"{len(table.plan.data):,}")
    yield Tile("Fits", f"{len(table.cells):,}", "each scored once on its test")


def _means(table: StudyTable) -> Chart:
    """Draw the mean of each model on each data set, with the SD over seeds."""
    models, lower = table.plan.models, "; lower is better" * (table.plan.figure == "log_loss")
    series = [_of_set(table, data) for data in table.plan.data]
    title = f"Mean ± SD over seeds{lower}"
    return row_chart(title, f"Test {plain(table.plan.figure)}", models, series)


def _of_set(table: StudyTable, data: str) -> RowSeries:
    """Return the means of a data set as they are drawn."""
    entries = [table.entries.get((model, data)) for model in table.plan.models]
    return RowSeries(
        data,
        [nan if one is None else one.mean for one in entries],
        [nan if one is None else one.mean - one.sd for one in entries],
        [nan if one is None else one.mean + one.sd for one in entries],
    )


def _table(table: StudyTable) -> Table:
    """Show every mean and SD, and the mean ranks."""
    across = table.across
    ranks = {} if across is None else dict(zip(across.models, across.ranks, strict=True))
    rows = tuple(
        (
            Cell(model),
            *(_cell(table, model, data) for data in table.plan.data),
            *((number_cell(ranks.get(model), 2),) if ranks else ()),
        )
        for model in table.plan.models
    )
    columns = ("model", *table.plan.data, *(("mean rank",) if ranks else ()))
    return Table("Mean ± SD over seeds", columns, rows)


def _cell(table: StudyTable, model: str, data: str) -> Cell:
    """Return an entry as a cell, which is sorted by its mean."""
    entry = table.entries.get((model, data))
    if entry is None:
        return Cell(NOTHING)
    return Cell(f"{entry.mean:.4f} ± {entry.sd:.4f}", entry.mean)


def _section_across(across: Across) -> Section:
    """Say what the data sets together say: ranks, and tests of pairs."""
    none = [nan] * len(across.models)
    chart = row_chart(
        f"Mean rank over {across.n_sets} data sets",
        "Mean rank; 1 is the best",
        across.models,
        [RowSeries("mean rank", across.ranks, none, none)],
    )
    rows = tuple(
        (
            Cell(pair.first),
            Cell(pair.second),
            Cell(f"{pair.difference:+.4f}", pair.difference),
            Cell(f"{pair.p_value_holm:.2g}", pair.p_value_holm),
            Cell(pair.verdict),
        )
        for pair in across.pairs
    )
    columns = ("model", "other", "mean difference", "p, Holm-corrected", "verdict")
    pairs = Table("Pairs of models; the difference is the first less the other", columns, rows)
    return Section("Across data sets", (chart, Sentences(tuple(across.how())), pairs))


def _fits(table: StudyTable) -> Section:
    """Show every fit."""
    figure = table.plan.figure
    rows = tuple(
        (
            Cell(one.unit.data),
            Cell(one.unit.model),
            number_cell(one.unit.seed, 0),
            number_cell(table.scores[one.key][figure]),
            Cell(one.hyperparameters),
        )
        for one in table.cells
    )
    columns = ("data", "model", "seed", plain(figure), "hyperparameters")
    return Section("Every fit", (Table("What each fit chose and reached", columns, rows),))
