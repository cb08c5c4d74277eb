"""The CSV files of a run as columns of text."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.report.page import Cell

_DIGITS = 4


@dataclass(frozen=True)
class TextTable:
    """A header of k names and n rows of k texts."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> tuple[str, ...]:
        """Return a column by its name; empty where there is no such column."""
        if name not in self.header:
            return ()
        at = self.header.index(name)
        return tuple(row[at] for row in self.rows)

    def numbers(self, name: str) -> list[float]:
        """Return a column as numbers."""
        return [float(text) for text in self.column(name)]


def read_text_table(path: Path) -> TextTable | None:
    """Read a CSV file that the program wrote; None where there is none, or it is empty."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)]
    return TextTable(rows[0], tuple(rows[1:])) if rows[1:] else None


def text_cells(row: Sequence[str]) -> tuple[Cell, ...]:
    """Return texts as cells; those that are numbers sort as numbers, and are rounded."""
    return tuple(map(_cell, row))


def _cell(text: str) -> Cell:
    """Return a text as a cell."""
    try:
        number = float(text)
    except ValueError:
        return Cell(text)
    if text.lstrip("-").isdigit():
        return Cell(text, number)
    return Cell(f"{number:.{_DIGITS}g}", number)
