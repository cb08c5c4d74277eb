"""The command ``sweep-heads``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from classify.options import COUNT, row_options, run_options, tensorboard_option
from data_cache.console import Callback, Command


def _choices(name: str, meaning: str, default: str) -> Callable[[Callback], Callback]:
    """Return an option that takes the values a sweep chooses a hyperparameter from."""
    return click.option(f"--{name}", metavar="VALUES", help=f"{meaning}  [default: {default}]")


@click.command("sweep-heads", cls=Command)
@run_options
@click.option(
    "--n-trials",
    type=COUNT,
    default=200,
    show_default=True,
    help="Configurations to draw at random.",
)
@click.option("--grid", is_flag=True, help="Try every configuration instead.")
@click.option(
    "--n-seeds",
    type=COUNT,
    default=1,
    show_default=True,
    help="Heads for each configuration, which is judged by their mean.",
)
@click.option(
    "--select-by",
    type=click.Choice(["accuracy", "log_loss", "balanced_accuracy", "macro_f1"]),
    default="log_loss",
    show_default=True,
    help="The figure on validation rows that chooses. Chance moves the log loss the least.",
)
@_choices("learning-rate", "Adam's.", "1e-4:1e-2")
@_choices("dropout", "Share of inputs left out.", "0,0.2,0.5")
@_choices("weight-decay", "As in AdamW.", "0,0.01,0.1,1")
@_choices("label-smoothing", "Share of a label spread out.", "0,0.1")
@_choices("epochs", "Passes over the rows.", "5,10,20")
@_choices("batch-size", "Rows in a step.", "64")
@_choices("standardize", "Standardize features.", "no,yes")
@_choices("class-weight", "Weigh classes.", "none")
@_choices("hidden-units", "Width of a hidden layer.", "0")
@_choices("patience", "Epochs without gain.", "none")
@click.option(
    "--cluster",
    metavar="tcp://HOST:8786|local:N",
    help="Train on the workers of a Dask cluster, or on N worker processes here.",
)
@tensorboard_option
@row_options
def sweep_heads(cache: Path, output: Path, *, overwrite: bool, grid: bool, **choices: Any) -> None:
    """Train many heads on the features in CACHE, and keep the one best on validation rows.

    VALUES are what a hyperparameter is chosen from: one or more with commas between them, or for
    a number a range LOW:HIGH, drawn log-uniformly. The best configuration is trained again,
    checked, scored on the test and written as train-head does; the others never see the test.
    RUN/sweep.csv has them all.

    \b
    Example:
        sweep-heads fashion.h5 --output runs/swept --n-trials 1000 --learning-rate 1e-4:1e-2
    """
    from classify.results.summary import summarize
    from classify.sweep_heads.job import SweepOptions
    from classify.sweep_heads.job import sweep_heads as sweep
    from classify.sweep_heads.search import SearchSpace

    space = SearchSpace.from_text(**{name: choices.pop(name) for name in SearchSpace.names()})
    choices["n_trials"] = None if grid else choices["n_trials"]
    run = sweep(cache, output, SweepOptions(space=space, **choices), overwrite=overwrite)
    click.echo(summarize(run))
