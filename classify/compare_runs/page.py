"""The page of a comparison of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, nan

from classify.compare_runs.entries import Entry
from classify.compare_runs.pairs import Pair
from classify.compare_runs.tables import NOTES, p_value_text, sentences
from classify.report.charts import Chart, RowSeries, row_chart
from classify.report.page import (
    NOTHING,
    Block,
    Cell,
    Page,
    Section,
    Sentences,
    Table,
    Words,
    interval_cells,
    number_cell,
)


def comparison_page(entries: Sequence[Entry], pairs: Sequence[Pair], name: str) -> Page:
    """Return the page of a comparison; ``name`` is what its folder is called."""
    sections = (
        Section("Models", (_chart(entries), _table(entries), Sentences(NOTES))),
        Section("Differences", tuple(_differences(entries, pairs))),
    )
    return Page(f"Comparison: {name}", _lead(entries, pairs), (), sections)


def _lead(entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    """Say in one sentence what was found."""
    runs = len({entry.run for entry in entries})
    words = f"{len(entries)} models of {runs} runs" if runs > 1 else f"{len(entries)} models"
    n_compared = sum(pair.p_value is not None for pair in pairs)
    if not n_compared:
        return f"{words}."
    n_beyond = sum(pair.is_beyond_chance for pair in pairs)
    return f"{words}; pairs that differ beyond chance: {n_beyond} of {n_compared}."


def _chart(entries: Sequence[Entry]) -> Chart:
    """Draw a dot with its whisker for each model that was tested."""
    ends = [entry.interval or (nan, nan) for entry in entries]
    series = RowSeries(
        "test accuracy",
        [nan if entry.accuracy is None else entry.accuracy for entry in entries],
        [low for low, _ in ends],
        [high for _, high in ends],
    )
    names = [_name(entries, at) for at in range(len(entries))]
    return row_chart("Test accuracy and its 95% interval", "Test accuracy", names, [series])


def _name(entries: Sequence[Entry], at: int) -> str:
    """Return what a model is called: its number in the table, and its approach."""
    return f"{at + 1} {entries[at].approach}"


def _table(entries: Sequence[Entry]) -> Table:
    """Show what each model took and reached."""
    tests = interval_cells([_interval(entry) for entry in entries])
    rows = tuple(
        (
            Cell(_name(entries, at)),
            Cell(str(entry.run)),
            number_cell(entry.n_images, 0),
            number_cell(entry.n_parameters, 0),
            number_cell(entry.seconds, 1),
            test,
        )
        for at, (entry, test) in enumerate(zip(entries, tests, strict=True))
    )
    columns = ("approach", "run", "images", "parameters", "seconds", "test, 95% interval")
    return Table("What each model took and reached", columns, rows)


def _interval(entry: Entry) -> tuple[float, float, float] | None:
    """Return a model's test accuracy between the ends of its interval."""
    if entry.accuracy is None or entry.interval is None:
        return None
    low, high = entry.interval
    return low, entry.accuracy, high


def _differences(entries: Sequence[Entry], pairs: Sequence[Pair]) -> Iterator[Block]:
    """Say how models were compared, and show every pair, the surest difference first."""
    yield Words(sentences(pairs)[0])
    if pairs:
        first = sorted(pairs, key=lambda pair: inf if pair.p_value is None else pair.p_value)
        rows = tuple(_row(entries, pair) for pair in first)
        columns = ("ahead", "behind", "difference", "images", "p", "verdict")
        yield Table("Pairs of models, the surest difference first", columns, rows)


def _row(entries: Sequence[Entry], pair: Pair) -> tuple[Cell, ...]:
    """Return the cells of a pair, the model ahead first."""
    first, second, difference = pair.first, pair.second, pair.difference
    if difference is not None and difference < 0:
        first, second, difference = second, first, -difference
    names = (Cell(_name(entries, first)), Cell(_name(entries, second)))
    if difference is None or pair.p_value is None:
        nothing = Cell(NOTHING)
        return (*names, nothing, number_cell(pair.n_common, 0), nothing, Cell(pair.verdict))
    return (
        *names,
        Cell(f"{difference:+.4f}", difference),
        number_cell(pair.n_common, 0),
        Cell(p_value_text(pair.p_value), pair.p_value),
        Cell(pair.verdict),
    )
