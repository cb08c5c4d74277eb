"""Options that several commands have, each written once: rows, seeds, where a run goes."""

from __future__ import annotations

from pathlib import Path

import click

from data_cache.console import together

OPEN_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
COUNT = click.IntRange(min=1)

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
        type=OPEN_SHARE,
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

learning_rate_option = click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Adam's.",
)

tensorboard_option = click.option(
    "--tensorboard", is_flag=True, help="Write RUN/tensorboard too. Needs the extra `tensorboard`."
)

memory_limit_option = click.option(
    "--memory-limit",
    metavar="SIZE",
    help="What features may take of memory, such as 2GB: where they would take more than half of "
    "it, they are read again in each pass, shuffled in windows.  [default: what is available]",
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
"""Which rows of a cache do what: :class:`classify.train_head.job.RowOptions`."""
