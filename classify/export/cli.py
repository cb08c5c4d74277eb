"""The command ``export-model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from data_cache.console import Command

_PATH = click.Path(path_type=Path)


@click.command("export-model", cls=Command)
@click.argument("run", type=_PATH)
@click.option(
    "--format",
    required=True,
    type=click.Choice(["keras", "savedmodel", "onnx", "tflite"]),
    help="savedmodel is a folder, the others are files.",
)
@click.option(
    "--output",
    required=True,
    type=_PATH,
    help="The file, which ends in .keras, .onnx or .tflite, or the folder.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Which model of the run, such as dense or logistic_regression.  [default: the one that "
    "was selected]",
)
@click.option(
    "--probabilities",
    type=click.Choice(["raw", "calibrated"]),
    default="raw",
    show_default=True,
    help="calibrated: by the temperature that was fitted in training.",
)
@click.option(
    "--weights",
    metavar="imagenet|FILE|random",
    help="Where the backbone's weights are.  [default: where they were in training]",
)
@click.option(
    "--cache", type=_PATH, help="Where the features are.  [default: where the run found them]"
)
@click.option(
    "--images",
    type=_PATH,
    help="A folder or a source with the images of the cache.  [default: where they were]",
)
@click.option(
    "--input-type",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    show_default=True,
    help="Of the pixels that an ONNX file takes; the other formats take both.",
)
@click.option(
    "--quantize",
    type=click.Choice(["none", "float16", "dynamic", "int8"]),
    default="none",
    show_default=True,
    help="Make a TFLite file smaller. dynamic: weights in 8 bits. int8: everything but the head, "
    "for chips of whole numbers, calibrated on images of the run.",
)
@click.option("--overwrite", is_flag=True, help="Replace the export that is at --output.")
def export_model(run: Path, output: Path, **choices: Any) -> None:
    """Export RUN as one model: raw RGB images of any size in, probabilities out.

    Resizing, scaling, backbone and head are one graph. Before anything is written, images of the
    run go through the new file in its own runtime, and it has to predict what the run does. A model
    card is written beside it. tflite, for phones, takes images that are resized already; what that
    and --quantize cost in accuracy is measured, shown and written down.

    \b
    Example:
        export-model runs/first --format onnx --output fashion.onnx
    """
    from classify.export.exporting import ExportOptions
    from classify.export.exporting import export_model as export

    exported = export(run, output, ExportOptions(**choices))
    click.echo(f"Wrote {exported.path} and {exported.card}")
