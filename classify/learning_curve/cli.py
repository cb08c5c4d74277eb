"""The command ``learning-curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from classify.options import OPEN_SHARE, left_out_options
from data_cache.console import Command


@click.command("learning-curve", cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the page (HTML), the table and every draw (CSV), the facts (JSON) and the "
    "figure (PNG).",
)
@click.option("--overwrite", is_flag=True, help="Replace the learning curve that is at --output.")
@click.option(
    "--probe",
    "probes",
    multiple=True,
    default=("logistic_regression",),
    show_default=True,
    metavar="NAME",
    help="A probe to measure, such as ridge. May be given several times.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=OPEN_SHARE,
    help="An accuracy to say the number of images for. May be given several times.",
)
@click.option(
    "--n-draws",
    type=click.IntRange(min=5),
    default=5,
    show_default=True,
    help="Subsets of each size.",
)
@click.option(
    "--on-test",
    is_flag=True,
    help="Score on the test, not on folds. Every fit counts as a model scored on it.",
)
@click.option(
    "--validation-split",
    type=OPEN_SHARE,
    default=0.2,
    show_default=True,
    help="Share of any number of images on which hyperparameters are chosen.",
)
@click.option(
    "--select-by",
    type=click.Choice(["accuracy", "log_loss"]),
    default="log_loss",
    show_default=True,
    help="The figure that chooses hyperparameters.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the folds, the subsets, and what the probes draw.",
)
@click.option(
    "--test-split", metavar="NAME", help="The split that is the test.  [default: test, if any]"
)
@left_out_options
def learning_curve(cache: Path, output: Path, *, overwrite: bool, **choices: Any) -> None:
    """Measure accuracy against the number of labeled images, on the features in CACHE.

    From two images of each class up to all, doubling, each number is drawn several times, every
    draw within the next larger one. At each the probe is tuned anew: the images that choose
    hyperparameters count. With --target it says how many images an accuracy would take.

    \b
    Example:
        learning-curve fashion.h5 --output runs/curve --target 0.85 --target 0.9
    """
    from classify.learning_curve.job import learning_curve as measure
    from classify.learning_curve.options import CurveOptions

    result = measure(cache, output, CurveOptions(**choices), overwrite=overwrite)
    click.echo(result.text)
    click.echo(f"Wrote {output}")
