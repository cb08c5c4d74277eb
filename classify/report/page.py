"""A page as values: what stands on it, free of how it looks; and the page as HTML."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from classify.report.charts import Chart

NOTHING = "–"
"""Stands in a cell that has no value."""


@dataclass(frozen=True)
class Tile:
    """A figure in large letters: its label, its value, a word on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """An interval and a value in it, as shares in [0, 1] of a column's width."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the number that it is sorted by, a bar beside it."""

    text: str
    number: float | None = None
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each column; a row has a cell for each column."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column has numbers, and nothing but dashes and empty cells beside them."""
        return tuple(map(_is_numeric, zip(*self.rows, strict=True)))


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: k names, k rows of k counts, each row with its shares in [0, 1]."""

    kind: ClassVar[str] = "matrix"
    caption: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Picture:
    """An image with lines of text; ``source`` is a ``data:`` address, empty where there is none."""

    lines: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    kind: ClassVar[str] = "gallery"
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Sentences:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "sentences"
    texts: tuple[str, ...]


Block = Table | Matrix | Gallery | Words | Sentences | Chart


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """Tell whether cells are numbers, but for those that have no value."""
    texts = {cell.text for cell in cells if cell.number is None}
    return texts <= {"", NOTHING} and any(cell.number is not None for cell in cells)


def render(page: Page) -> str:
    """Return the page as HTML that needs no other file."""
    script = _text("page.js")
    return _template().render(
        page=page, style=_text("page.css"), script=script, script_digest=_digest(script)
    )


def write_page(page: Page, path: Path) -> None:
    """Write the page as HTML, in UTF-8."""
    path.write_text(render(page), encoding="utf-8")


def number_cell(value: float | None, digits: int = 4) -> Cell:
    """Return a cell with a number; a dash where there is none."""
    return Cell(NOTHING) if value is None else Cell(f"{value:,.{digits}f}", value)


def interval_cells(
    values: Sequence[tuple[float, float, float] | None], digits: int = 4
) -> list[Cell]:
    """Return cells with a value and its interval (low, value, high), bars on one common scale."""
    known = [one for one in values if one is not None]
    least = min((low for low, _, _ in known), default=0.0)
    width = (max((high for _, _, high in known), default=1.0) - least) or 1.0
    cells = []
    for one in values:
        if one is None:
            cells.append(Cell(NOTHING))
            continue
        bar = Bar(*(round((part - least) / width, 4) for part in one))
        low, value, high = (f"{part:.{digits}f}" for part in one)
        cells.append(Cell(f"{value} ({low} to {high})", one[1], bar))
    return cells


@cache
def _template() -> Template:
    """Return the page's template, which takes every value for text."""
    environment = Environment(
        loader=PackageLoader("classify.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _text(name: str) -> str:
    """Return a file of the templates."""
    return files("classify.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the digest by which the page's policy knows its own script."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()
