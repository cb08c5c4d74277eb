"""The command ``fine-tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from classify.options import COUNT, tensorboard_option
from data_cache.console import Command, together
from extract.cli import listing_options, pick

head_options = together(
    click.option(
        "--head",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Run that train-head wrote, whose head to start from; its rows train and validate. "
        "[default: train one on the spot]",
    ),
    click.option(
        "--cache",
        type=click.Path(path_type=Path),
        help="The head's feature cache.  [default: where it was; on the spot, a temporary one]",
    ),
    click.option(
        "--weights",
        metavar="imagenet|FILE|random",
        help="Where the backbone's weights are; they must be the head's.  [default: where the "
        "head's were]",
    ),
    click.option("--backbone", metavar="NAME", help="[default: the head's, else mobilenet_v2]"),
    click.option(
        "--image-size",
        type=COUNT,
        help="Side of the backbone's input in pixels.  [default: the head's]",
    ),
    click.option(
        "--resize-mode",
        type=click.Choice(["stretch", "crop", "pad"]),
        help="How an image becomes square.  [default: the head's]",
    ),
)
"""The head to start from, and what its features are expected to be."""

training_options = together(
    click.option(
        "--unfreeze-layers",
        type=click.IntRange(min=0),
        default=20,
        show_default=True,
        help="Train so many of the backbone's last layers; pooling is not counted.",
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, min_open=True),
        default=1e-5,
        show_default=True,
        help="Adam's.",
    ),
    click.option(
        "--epochs", type=COUNT, default=5, show_default=True, help="Passes over the images."
    ),
    click.option(
        "--batch-size", type=COUNT, default=64, show_default=True, help="Images in a step."
    ),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine"]),
        default="constant",
        show_default=True,
        help="cosine: the learning rate falls to 0 along half a cosine.",
    ),
    click.option(
        "--augment",
        is_flag=True,
        help="Show a new random view of each image in each epoch: mirrored, cut out, a little "
        "brighter or paler.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of the order of the images, the dropout, the views and the rows that decide.",
    ),
    click.option("--mixed-precision", is_flag=True, help="Compute in float16 on a GPU."),
)
"""How the unfrozen layers are trained."""

activation_options = together(
    click.option(
        "--from-cache",
        is_flag=True,
        help="Compute what the frozen layers make of each image once, and train on that: the same "
        "path, several times as fast.",
    ),
    click.option(
        "--views",
        type=click.IntRange(min=0),
        default=0,
        help="With --from-cache: so many random views of each training image, which the epochs "
        "take in turn.  [default: 0, the images themselves]",
    ),
    click.option(
        "--activations",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="FOLDER",
        help="Where --from-cache keeps what it computes; what is there is used again.  "
        "[default: OUTPUT.activations]",
    ),
)
"""Training on activations that were computed once."""


@click.command("fine-tune", cls=Command)
@click.argument("source")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder for the run."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the run at --output, and begin an interrupted fine-tuning anew.",
)
@click.option("--resume", is_flag=True, help="Go on with a fine-tuning that was interrupted.")
@head_options
@training_options
@activation_options
@click.option("--no-test", is_flag=True, help="Leave the test alone.")
@tensorboard_option
@listing_options
@click.option(
    "--split-seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the splits and draws of SOURCE: what --seed of extract-features was.",
)
def fine_tune(source: str, output: Path, *, head: Path | None, **choices: Any) -> None:
    """Train the last layers of a backbone on together with a head, and keep the better model.

    SOURCE has the images that the head's features are of. Where fine-tuning does not beat the
    head's run on validation rows, RUN2 is a copy of that run, so it never makes things worse.
    The state after each epoch is kept in OUTPUT.fine-tuning until the run is written.

    \b
    Example:
        fine-tune fashion_mnist --head runs/first --output runs/tuned --learning-rate 1e-4
        fine-tune photos/ --head runs/first --output runs/tuned --from-cache --views 4
    """
    from classify.fine_tune.options import Demands, FineTuneOptions
    from classify.fine_tune.summary import summarize
    from classify.fine_tune.tuning import fine_tune as tune
    from extract.sources import SourceOptions, open_source

    listing = pick(SourceOptions, {**choices, "seed": choices["split_seed"]})
    options = pick(FineTuneOptions, choices, demands=pick(Demands, choices))
    click.echo(summarize(tune(open_source(source, listing), head, output, options)))
