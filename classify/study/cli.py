"""The command ``compare-study``."""

from __future__ import annotations

from pathlib import Path

import click

from data_cache.console import Command


@click.command("compare-study", cls=Command)
@click.argument("study", metavar="STUDY.toml", type=click.Path(path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the study. What an earlier run finished there is not made again.",
)
def compare_study(study: Path, output: Path) -> None:
    """Compare probes on the features of several backbones, over several data sets.

    STUDY.toml names probes and seeds, and for each data set a cache of each backbone. Every fit is
    a file in the folder, so a study that was stopped goes on, and one that has grown adds what is
    new. The table has mean and SD over seeds, as a page (HTML), CSV, Markdown and LaTeX; across
    data sets the models are compared by Friedman's test and Wilcoxon's.

    \b
    STUDY.toml:
        probes = ["logistic_regression", "ridge"]
        seeds = [0, 1, 2, 3, 4]
        [data.fashion]
        mobilenet_96 = "fashion96.h5"
        mobilenet_160 = "fashion160.h5"
        [data.pets]
        mobilenet_96 = "pets96.h5"
        mobilenet_160 = "pets160.h5"

    \b
    Example:
        compare-study study.toml --output runs/study
    """
    from classify.study.job import compare_study as compare
    from classify.study.plan import read_plan

    table = compare(read_plan(study), output, study.read_text(encoding="utf-8"))
    click.echo(table.text)
    click.echo(f"Wrote {output}")
