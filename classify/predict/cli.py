"""The command ``predict-images``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from data_cache.console import Command


@click.command("predict-images", cls=Command)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, .csv or .jsonl.  [default: a table on standard output]",
)
@click.option(
    "--format",
    type=click.Choice(["auto", "csv", "jsonl", "table"]),
    default="auto",
    show_default=True,
    help="auto: by the name of the output.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file that is at --output.")
@click.option(
    "--model",
    metavar="NAME",
    default="selected",
    show_default=True,
    help="Which model of a run, such as dense or logistic_regression; selected is its winner on "
    "validation rows.",
)
@click.option(
    "--probabilities",
    type=click.Choice(["raw", "calibrated"]),
    help="calibrated: by the temperature that was fitted in training.  [default: raw; of an "
    "exported file, what it gives]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tell so many of the likeliest classes.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Call an image `unsure` whose likeliest class is less probable.  [default: 0]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="A cache to take the features of images from that it holds.",
)
@click.option(
    "--weights",
    metavar="imagenet|FILE",
    help="Where the backbone's weights are; they must be those that the run was made with. For a "
    "backbone onnx:FILE, that file.  [default: where they were then]",
)
@click.option(
    "--preprocess",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="How pixels are scaled for a backbone onnx:FILE.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "keras", "litert", "onnx"]),
    default="auto",
    show_default=True,
    help="What runs the backbone. auto: keras on a GPU, on a CPU what suits the backbone.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images in a forward pass.  [default: measured]",
)
@click.pass_context
def predict_images(
    ctx: click.Context, model_path: Path, paths: tuple[str, ...], **choices: Any
) -> None:
    """Classify new images with MODEL: a run folder, or what export-model wrote.

    An exported model is checked before it is loaded: one that was changed, or that holds more than
    a classifier needs, is refused.

    PATH is an image, a folder (searched at any depth), a quoted pattern such as 'photos/**/*.jpg',
    or a table (.csv, .tsv) with a column path. Each image gets one line with its class and the
    probability of that, or with the reason why it cannot be read; then the exit code is 3.

    \b
    Example:
        predict-images runs/photos new_photos/ --output classes.csv
    """
    from classify.predict.classifiers import PredictOptions
    from classify.predict.job import OutputOptions, tell
    from classify.predict.job import predict_images as predict

    predicting = {one: choices.pop(one) for one in PredictOptions.names()}
    report = predict(model_path, paths, PredictOptions(**predicting), OutputOptions(**choices))
    tell(report)
    ctx.exit(report.exit_code)
