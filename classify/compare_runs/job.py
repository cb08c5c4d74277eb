"""The library call behind ``compare-runs``: run folders in, a comparison out, on disk if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.compare_runs.entries import SELECTED, Entry, read_entries
from classify.compare_runs.figure import draw_comparison
from classify.compare_runs.page import comparison_page
from classify.compare_runs.pairs import Pair, compare_pairs
from classify.compare_runs.tables import as_markdown, as_text, write_entries, write_pairs
from classify.report.page import write_page
from classify.results.output_folder import check_output_folder
from classify.results.runs import REPORT_FILE
from data_cache.files import whole_folder

TABLE_FILE, PAIRS_FILE = "table.csv", "pairs.csv"
MARKDOWN_FILE, FIGURE_FILE = "table.md", "accuracy.png"
FILES = frozenset({TABLE_FILE, PAIRS_FILE, MARKDOWN_FILE, FIGURE_FILE, REPORT_FILE})
"""Everything that the folder of a comparison holds."""


@dataclass(frozen=True)
class Comparison:
    """Models of runs, and how every two of them differ on the test."""

    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]

    @property
    def text(self) -> str:
        """What ``compare-runs`` prints."""
        return as_text(self.entries, self.pairs)

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write HTML, CSV, Markdown and PNG into a folder, whole or not at all.

        Raises
        ------
        OutputExistsError, OutputError
            See :func:`classify.results.output_folder.check_output_folder`.
        """
        check_output_folder(folder, FILES, overwrite=overwrite)
        with whole_folder(folder.resolve(), overwrite=overwrite) as new:
            write_entries(new / TABLE_FILE, self.entries)
            write_pairs(new / PAIRS_FILE, self.pairs)
            markdown = as_markdown(self.entries, self.pairs)
            (new / MARKDOWN_FILE).write_text(markdown, encoding="utf-8")
            draw_comparison(self.entries, self.pairs, new / FIGURE_FILE)
            page = comparison_page(self.entries, self.pairs, folder.name)
            write_page(page, new / REPORT_FILE)


def compare_runs(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (SELECTED,),
    output: Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Compare models of runs; write tables and a figure into the folder ``output``, if any.

    Raises
    ------
    HeadstartError
        See :func:`classify.compare_runs.entries.read_entries` and
        :func:`classify.results.output_folder.check_output_folder`.
    """
    if output is not None:
        check_output_folder(output, FILES, overwrite=overwrite)
    entries = read_entries(paths, models)
    comparison = Comparison(entries, compare_pairs(entries))
    if output is not None:
        comparison.write(output, overwrite=overwrite)
    return comparison
