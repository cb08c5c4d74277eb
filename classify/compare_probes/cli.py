"""The command ``compare-probes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from classify.options import COUNT, memory_limit_option, output_options, row_options
from data_cache.console import Command


@click.command("compare-probes", cls=Command)
@click.argument(
    "caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@output_options
@click.option(
    "--probe",
    "probes",
    multiple=True,
    metavar="NAME",
    help="A probe to compare, such as ridge. May be given several times.  [default: all]",
)
@click.option(
    "--select-by",
    type=click.Choice(["accuracy", "log_loss"]),
    default="accuracy",
    show_default=True,
    help="The figure that chooses hyperparameters, on validation rows, and then the winner.",
)
@click.option(
    "--class-weight",
    type=click.Choice(["balanced"]),
    help="Weigh rows so that every class counts the same, where a probe can.",
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="The model that all others are tested against, CACHE:PROBE or PROBE.  "
    "[default: the winner]",
)
@click.option(
    "--folds",
    "n_folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="Folds of the training rows, out of which the temperatures are fitted.",
)
@click.option(
    "--n-seeds",
    type=COUNT,
    default=1,
    show_default=True,
    help="Models of each probe that draws anything, to show how far the seed moves it. All of "
    "them count as scored on the test.",
)
@memory_limit_option
@row_options
def compare_probes(
    caches: tuple[Path, ...],
    output: Path,
    *,
    overwrite: bool,
    **choices: Any,
) -> None:
    """Compare probes on the features in each CACHE, with intervals and tests.

    Every probe is tuned on validation rows, fitted again to training and validation rows, and
    scored on the test once, when all choices are made. The winner is the best on rows held out:
    training rows fold by fold, and validation rows. Several caches must hold the same images. RUN
    keeps the winner; RUN/comparison.csv has every figure.

    \b
    Example:
        compare-probes fashion96.h5 fashion160.h5 --output runs/probes
        compare-probes fashion96.h5 --output runs/two --probe ridge --probe dense
    """
    from classify.compare_probes.job import compare_probes as compare
    from classify.compare_probes.options import CompareOptions
    from classify.compare_probes.tables import summarize_comparison
    from classify.probes import PROBES

    choices["probes"] = choices["probes"] or tuple(PROBES)
    run = compare(caches, output, CompareOptions(**choices), overwrite=overwrite)
    click.echo(summarize_comparison(run))
