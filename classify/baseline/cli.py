"""The command ``train-baseline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from classify.options import COUNT, division_options, learning_rate_option, output_options
from data_cache.console import Command
from data_cache.errors import EXIT_SOME_LEFT_OUT
from extract.cli import decode_options, listing_options, pick


@click.command("train-baseline", cls=Command)
@click.argument("source")
@output_options
@click.option("--epochs", type=COUNT, default=10, show_default=True, help="Passes over the images.")
@click.option(
    "--batch-size", type=COUNT, default=64, show_default=True, help="Images in a training step."
)
@learning_rate_option
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of each dense layer's inputs left out in each step.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=4),
    help="Side in pixels that images are resized to.  [default: their own size]",
)
@click.option(
    "--resize-mode",
    type=click.Choice(["stretch", "crop", "pad"]),
    default="stretch",
    show_default=True,
    help="How an image becomes square.",
)
@division_options
@listing_options
@click.option(
    "--split-seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the splits and draws of SOURCE: what --seed of extract-features was.",
)
@decode_options
@click.pass_context
def train_baseline(
    ctx: click.Context, source: str, output: Path, *, overwrite: bool, **choices: Any
) -> None:
    """Train a small convolutional network on the pixels of SOURCE alone, from scratch.

    It is what features have to beat: two convolutions and two dense layers, on images at their own
    size. SOURCE is what extract-features takes. The run has the same files as train-head's. How
    often its test was scored is counted in a log beside --output; caches keep logs of their own.

    \b
    Example:
        train-baseline fashion_mnist --output runs/scratch --train-limit 15000
        train-baseline photos/ --output runs/scratch --image-size 64
    """
    from classify.baseline.images import ImageOptions
    from classify.baseline.job import BaselineOptions
    from classify.baseline.job import train_baseline as train
    from classify.baseline.summary import summarize_baseline
    from extract.decode import DecodeOptions
    from extract.sources import SourceOptions, open_source

    listing = pick(SourceOptions, {**choices, "seed": choices["split_seed"]})
    imaging = pick(ImageOptions, choices, decoding=pick(DecodeOptions, choices))
    options = pick(BaselineOptions, choices)
    run = train(open_source(source, listing), output, options, imaging, overwrite=overwrite)
    click.echo(summarize_baseline(run))
    ctx.exit(EXIT_SOME_LEFT_OUT if run.metrics["n_left_out"] else 0)
