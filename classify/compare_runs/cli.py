"""The command ``compare-runs``."""

from __future__ import annotations

from pathlib import Path

import click

from data_cache.console import Command


@click.command("compare-runs", cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    default=("selected",),
    show_default=True,
    help="A model of each run to show, such as dense; `selected` is the one that won on "
    "validation, `all` are all. May be given several times.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the page (HTML), the tables (CSV and Markdown) and the figure (PNG).",
)
@click.option("--overwrite", is_flag=True, help="Replace the comparison that is at --output.")
def compare_runs(
    runs: tuple[Path, ...], models: tuple[str, ...], output: Path | None, *, overwrite: bool
) -> None:
    """Put runs side by side, and say which differ beyond chance on the test.

    A row for each: approach, labeled images, trained parameters, seconds, test accuracy with its
    95% interval. Every two are compared on the test images that both were scored on.

    \b
    Example:
        compare-runs runs/first runs/tuned runs/scratch --output runs/table
    """
    from classify.compare_runs.job import compare_runs as compare

    click.echo(compare(runs, models=models, output=output, overwrite=overwrite).text)
    if output is not None:
        click.echo(f"\nWrote {output}")
