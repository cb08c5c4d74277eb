"""A comparison as text, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from classify.compare_runs.entries import Entry
from classify.compare_runs.pairs import Pair
from classify.results.runs import write_table
from classify.results.summary import align

_HEADER = ("", "approach", "run", "images", "parameters", "seconds", "test", "95% interval")
NOTES = (
    "Images: labeled ones that were learned from or chosen on. Parameters: those that were "
    "trained.",
    "Seconds: of fitting alone, without reading, extraction and the import of packages.",
)
_SMALLEST_SHOWN = 1e-4


def as_text(entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    """Return what ``compare-runs`` prints: lines without a last line end."""
    table = align([_HEADER, *_cells(entries)])
    return "\n".join([*table, "", *sentences(pairs), "", *NOTES])


def as_markdown(entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    """Return the same as Markdown."""
    rows = [_HEADER, ["---"] * len(_HEADER), *_cells(entries)]
    table = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows]
    how, *differences = sentences(pairs)
    listed = [f"- {sentence}" for sentence in differences]
    return "\n".join([*table, "", how, "", *listed, "", *NOTES, ""])


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Write the table as CSV, a row for each model; what is not known is empty."""
    header = [
        *("number", "approach", "run", "model", "images", "trained_parameters", "seconds"),
        *("test_images", "test_accuracy", "ci95_low", "ci95_high"),
    ]
    rows = [
        (
            *(number, one.approach, one.run, one.model, one.n_images, one.n_parameters),
            *(one.seconds, one.n_test, one.accuracy, *(one.interval or (None, None))),
        )
        for number, one in enumerate(entries, start=1)
    ]
    write_table(path, header, rows)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write every pair as CSV; the difference is the first's accuracy less the second's."""
    header = ["first", "second", "images", "difference", "p_value_holm", "verdict"]
    rows = [
        (one.first + 1, one.second + 1, one.n_common, one.difference, one.p_value, one.verdict)
        for one in pairs
    ]
    write_table(path, header, rows)


def sentences(pairs: Sequence[Pair]) -> list[str]:
    """Say how the pairs were compared, then of each whether it differs beyond chance."""
    if not pairs:
        return ["One model alone: there is nothing to compare it with."]
    return [_how(pairs), *(_difference(pair) for pair in pairs)]


def _how(pairs: Sequence[Pair]) -> str:
    """Say how the pairs were compared."""
    n_compared = sum(pair.p_value is not None for pair in pairs)
    if not n_compared:
        return "No pair could be compared."
    several = f", Holm-adjusted for {n_compared} pairs" if n_compared > 1 else ""
    how = f"Differences on the test, paired by image: exact McNemar test, mid-p{several}."
    if all(pair.is_whole for pair in pairs if pair.p_value is not None):
        return how
    return f"{how} Where two were tested on different images, those they share count."


def _difference(pair: Pair) -> str:
    """Say how two models differ, the one ahead first."""
    first, second = pair.first + 1, pair.second + 1
    if pair.difference is None or pair.p_value is None:
        return f"{first} and {second}: {pair.verdict}"
    if pair.difference < 0:
        first, second = second, first
    p = p_value_text(pair.p_value)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    joint = "over" if pair.difference else "and"
    return (
        f"{first} {joint} {second}: {abs(pair.difference):+.4f} on {pair.n_common:,} images, {p}, "
        f"{pair.verdict}"
    )


def p_value_text(p_value: float) -> str:
    """Return a p-value as text."""
    return f"< {_SMALLEST_SHOWN:g}" if p_value < _SMALLEST_SHOWN else f"{p_value:.2g}"


def _cells(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table, a row for each model."""
    for number, one in enumerate(entries, start=1):
        accuracy, interval = "-", "-"
        if one.accuracy is not None and one.interval is not None:
            accuracy = f"{one.accuracy:.4f}"
            interval = f"{one.interval[0]:.4f} to {one.interval[1]:.4f}"
        size = "-" if one.n_parameters is None else f"{one.n_parameters:,}"
        cost = (f"{one.n_images:,}", size, f"{one.seconds:,.1f}")
        yield (str(number), one.approach, str(one.run), *cost, accuracy, interval)


def _escaped(cell: str) -> str:
    """Return a cell without what Markdown would take for the table's own lines."""
    return " ".join(cell.replace("|", "\\|").split())
