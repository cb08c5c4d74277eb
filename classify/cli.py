"""The command ``train-head``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from data_cache.console import Command

_OPEN_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command("train-head", cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder for the run."
)
@click.option("--overwrite", is_flag=True, help="Replace the run that is at --output.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Passes over the training rows.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Rows in a training step.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Adam's.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the features left out in each step.",
)
@click.option(
    "--standardize",
    is_flag=True,
    help="Bring each feature to mean 0 and standard deviation 1 before the Dense head.",
)
@click.option(
    "--class-weight",
    type=click.Choice(["balanced"]),
    help="Weigh rows so that every class counts the same.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the validation rows, the initial weights, the order of rows and the dropout.",
)
@click.option(
    "--validation-split",
    type=_OPEN_SHARE,
    default=0.2,
    show_default=True,
    help="Share of the training rows drawn for validation, where the cache has no split `val`.",
)
@click.option(
    "--rare-class",
    type=click.Choice(["keep", "drop", "error"]),
    default="keep",
    show_default=True,
    help="A class too rare to give a validation row: keep its rows in training, drop them, or "
    "refuse.",
)
@click.option(
    "--test-split", metavar="NAME", help="The split that is the test.  [default: test, if any]"
)
@click.option("--no-test", is_flag=True, help="Leave the test alone.")
def train_head(cache: Path, output: Path, *, overwrite: bool, **choices: Any) -> None:
    """Train a head on the features in CACHE, check it, and score the test once.

    The head is dropout and one dense layer. A logistic regression on the same features is its
    cross-check; the better of the two on validation rows is selected.

    \b
    Example:
        train-head fashion.h5 --output runs/first
    """
    from classify.summary import summarize
    from classify.train import TrainingOptions
    from classify.train import train_head as train

    run = train(cache, output, TrainingOptions(**choices), overwrite=overwrite)
    click.echo(summarize(run))
