"""The command ``train-head``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from classify.options import (
    COUNT,
    OPEN_SHARE,
    learning_rate_option,
    memory_limit_option,
    row_options,
    run_options,
    tensorboard_option,
)
from data_cache.console import Command


@click.command("train-head", cls=Command)
@run_options
@click.option(
    "--epochs",
    type=COUNT,
    default=5,
    show_default=True,
    help="Passes over the training rows.",
)
@click.option(
    "--batch-size",
    type=COUNT,
    default=64,
    show_default=True,
    help="Rows in a training step.",
)
@learning_rate_option
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
    "--weight-decay",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Decay of the kernels in each step, times the learning rate, as in AdamW.",
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of each label spread over all classes.",
)
@click.option(
    "--hidden-units",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Width of a hidden layer; 0 for none.",
)
@click.option(
    "--patience",
    type=COUNT,
    help="Stop after so many epochs without a lower validation loss, and go back to the best.",
)
@click.option(
    "--folds",
    "n_folds",
    type=click.IntRange(min=2),
    help="Cross-validate with so many folds, groups whole, and select by what that finds.",
)
@click.option(
    "--repeats",
    "n_repeats",
    type=COUNT,
    default=1,
    show_default=True,
    help="Times that folds are drawn.",
)
@click.option(
    "--refit",
    type=click.Choice(["train", "train+val", "all"]),
    default="train",
    show_default=True,
    help="Rows that the Dense head is fitted to in the end. The logistic regression has the "
    "validation rows too. `all` has the test's, so nothing is scored on it.",
)
@click.option(
    "--init-from",
    metavar="RUN",
    help="Start the Dense head from that of an earlier run. Rows that it learned from never "
    "validate. Classes that are new in CACHE start as in any head.",
)
@click.option(
    "--champion",
    metavar="RUN",
    help="Score the model selected in RUN, too, on the rows that RUN was tested on, and on no "
    "others. The new run is to be used only if it is not worse.",
)
@click.option(
    "--champion-margin",
    type=OPEN_SHARE,
    default=0.01,
    show_default=True,
    help="Not worse: accuracy less the champion's, on the same rows, is above minus this with 95% "
    "confidence (one-sided, Tango's interval).",
)
@memory_limit_option
@tensorboard_option
@row_options
@click.pass_context
def train_head(
    ctx: click.Context, cache: Path, output: Path, *, overwrite: bool, **choices: Any
) -> None:
    """Train a head on the features in CACHE, check it, and score the test once.

    The head is dropout and one dense layer. A logistic regression on the same features is its
    cross-check; the better of the two on validation rows, or out of fold, is selected. With
    --folds, RUN/suspects.csv lists the rows that look mislabeled.

    With --champion the run is written in any case; the exit code is 4 where the champion stays.

    \b
    Example:
        train-head fashion.h5 --output runs/first
    """
    from classify.results.summary import summarize
    from classify.train_head.champion import exit_code
    from classify.train_head.job import TrainingOptions
    from classify.train_head.job import train_head as train

    run = train(cache, output, TrainingOptions(**choices), overwrite=overwrite)
    click.echo(summarize(run))
    ctx.exit(exit_code(run))
