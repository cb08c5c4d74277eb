"""The commands ``train-head`` and ``sweep-heads``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from data_cache.console import Callback, Command, together

_OPEN_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_COUNT = click.IntRange(min=1)

output_options = together(
    click.option(
        "--output", required=True, type=click.Path(path_type=Path), help="Folder for the run."
    ),
    click.option("--overwrite", is_flag=True, help="Replace the run that is at --output."),
)
"""Where a command writes its run."""

run_options = together(click.argument("cache", type=click.Path(path_type=Path)), output_options)
"""What every command that learns from a cache and writes a run has."""

division_options = together(
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of the validation rows, the initial weights, the order of rows and the dropout.",
    ),
    click.option(
        "--validation-split",
        type=_OPEN_SHARE,
        default=0.2,
        show_default=True,
        help="Share of the training rows drawn for validation, where there is no split `val`.",
    ),
    click.option(
        "--rare-class",
        type=click.Choice(["keep", "drop", "error"]),
        default="keep",
        show_default=True,
        help="A class too rare to give a validation row: keep its rows in training, drop them, "
        "or refuse.",
    ),
    click.option(
        "--test-split", metavar="NAME", help="The split that is the test.  [default: test, if any]"
    ),
    click.option("--no-test", is_flag=True, help="Leave the test alone."),
)
"""How rows are divided into those that are learned from, chosen on, and scored."""

tensorboard_option = click.option(
    "--tensorboard", is_flag=True, help="Write RUN/tensorboard too. Needs the extra `tensorboard`."
)

left_out_options = together(
    click.option(
        "--verify",
        is_flag=True,
        help="Compare the whole cache with its digest, even if that was done before.",
    ),
    click.option(
        "--drop-leaks",
        is_flag=True,
        help="Leave out rows that have a copy in the test, or nearly: see `feature-cache leaks`.",
    ),
    click.option(
        "--exclude",
        type=click.Path(),
        help="CSV with the columns split and id of rows to leave out.",
    ),
)
"""How far a cache is believed, and which of its rows take no part."""

row_options = together(division_options, left_out_options)
"""Which rows of a cache do what: :class:`classify.train.RowOptions`."""


@click.command("train-head", cls=Command)
@run_options
@click.option(
    "--epochs",
    type=_COUNT,
    default=5,
    show_default=True,
    help="Passes over the training rows.",
)
@click.option(
    "--batch-size",
    type=_COUNT,
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
    type=_COUNT,
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
    type=_COUNT,
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
    type=_OPEN_SHARE,
    default=0.01,
    show_default=True,
    help="Not worse: accuracy less the champion's, on the same rows, is above minus this with 95% "
    "confidence (one-sided, Tango's interval).",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    help="What features may take of memory, such as 2GB: where they would take more than half of "
    "it, they are read again in each epoch, shuffled in windows.  [default: what is available]",
)
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
    from classify.champion import exit_code
    from classify.summary import summarize
    from classify.train import TrainingOptions
    from classify.train import train_head as train

    run = train(cache, output, TrainingOptions(**choices), overwrite=overwrite)
    click.echo(summarize(run))
    ctx.exit(exit_code(run))


def _choices(name: str, meaning: str, default: str) -> Callable[[Callback], Callback]:
    """Return an option that takes the values a sweep chooses a hyperparameter from."""
    return click.option(f"--{name}", metavar="VALUES", help=f"{meaning}  [default: {default}]")


@click.command("sweep-heads", cls=Command)
@run_options
@click.option(
    "--n-trials",
    type=_COUNT,
    default=200,
    show_default=True,
    help="Configurations to draw at random.",
)
@click.option("--grid", is_flag=True, help="Try every configuration instead.")
@click.option(
    "--n-seeds",
    type=_COUNT,
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
    from classify.search import SearchSpace
    from classify.summary import summarize
    from classify.sweep import SweepOptions
    from classify.sweep import sweep_heads as sweep

    space = SearchSpace.from_text(**{name: choices.pop(name) for name in SearchSpace.names()})
    choices["n_trials"] = None if grid else choices["n_trials"]
    run = sweep(cache, output, SweepOptions(space=space, **choices), overwrite=overwrite)
    click.echo(summarize(run))
