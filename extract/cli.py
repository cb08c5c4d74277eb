"""The command ``extract-features``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from data_cache.console import Command, together
from data_cache.errors import ParameterError

if TYPE_CHECKING:
    from data_cache.part import Part
    from extract.extraction import ExtractionOptions, ExtractionReport

_Options = TypeVar("_Options")

_N_BAD_SHOWN = 10
FRACTION = click.FloatRange(0, 1)
PROPER_FRACTION = click.FloatRange(0, 1, max_open=True)


backbone_options = together(
    click.option(
        "--backbone",
        default="mobilenet_v2",
        show_default=True,
        metavar="NAME|onnx:FILE",
        help="The README lists the names.",
    ),
    click.option(
        "--preprocess",
        type=click.Path(path_type=Path),
        metavar="JSON",
        help="How pixels are scaled for onnx:FILE.",
    ),
    click.option(
        "--weights",
        default="imagenet",
        show_default=True,
        metavar="imagenet|FILE|random",
        help="Keras's ImageNet weights; a file of weights or a whole Keras model; or random ones, "
        "for tests and timing.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(min=1),
        help="Side of the backbone's input in pixels.  [default: 96 for the built-in sets, else "
        "the backbone's native size]",
    ),
    click.option(
        "--resize-mode",
        type=click.Choice(["stretch", "crop", "pad"]),
        default="stretch",
        show_default=True,
        help="How an image becomes square.",
    ),
)

engine_options = together(
    click.option(
        "--engine",
        type=click.Choice(["auto", "keras", "litert", "onnx"]),
        default="auto",
        show_default=True,
        help="What runs the backbone. auto: keras on a GPU, on a CPU what suits the backbone.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images in a forward pass.  [default: measured]",
    ),
    click.option("--mixed-precision", is_flag=True, help="float16 on a GPU (engine keras)."),
)

listing_options = together(
    click.option(
        "--format",
        type=click.Choice(
            ["auto", "class-folders", "split-folders", "csv", "tsv", "npz", "npy", "hdf5"]
        ),
        default="auto",
        show_default=True,
        help="What SOURCE is; auto looks.",
    ),
    click.option("--train-limit", type=click.IntRange(min=1), help="Use so many training images."),
    click.option("--test-limit", type=click.IntRange(min=1), help="Use so many test images."),
    click.option(
        "--validation-fraction",
        type=PROPER_FRACTION,
        help="Share of a source without splits that becomes `val`.  [default: 0]",
    ),
    click.option(
        "--test-fraction",
        type=PROPER_FRACTION,
        help="Share of a source without splits that becomes `test`.  [default: 0.2]",
    ),
    click.option(
        "--group-duplicates",
        is_flag=True,
        help="Keep images that look alike on one side of the division.",
    ),
    click.option(
        "--exclude",
        type=click.Path(path_type=Path),
        help="CSV with the columns split and id of rows to leave out.",
    ),
    click.option(
        "--rehash", is_flag=True, help="Read every file anew, even if it looks unchanged."
    ),
)
"""What SOURCE is, and which of its images are used."""

source_options = together(
    listing_options,
    click.option("--seed", type=int, default=0, show_default=True, help="Of splits and draws."),
)

decode_options = together(
    click.option(
        "--tolerate-truncated", is_flag=True, help="Decode images that break off as far as they go."
    ),
    click.option(
        "--background",
        type=click.Choice(["white", "black"]),
        default="white",
        show_default=True,
        help="Behind transparent parts.",
    ),
    click.option("--white-level", type=float, help="White in gray images of more than 8 bits."),
)

image_options = together(
    click.option(
        "--on-bad-image",
        type=click.Choice(["fail-late", "skip", "fail"]),
        default="fail-late",
        show_default=True,
        help="fail-late: extract all others, list the bad ones, end with exit code 3; skip: end "
        "with 0 while no more than --max-bad are bad; fail: stop at the first.",
    ),
    click.option(
        "--max-bad", type=FRACTION, default=0.01, show_default=True, help="Share, for skip."
    ),
    click.option("--retry-bad", is_flag=True, help="Try again what could not be decoded before."),
    decode_options,
)

update_options = together(
    click.option("--overwrite", is_flag=True, help="Replace a cache that another recipe made."),
    click.option("--prune", is_flag=True, help="Remove rows that are no longer in the source."),
    click.option("--append", is_flag=True, help="Add SOURCE; what the cache holds stays."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16"]),
        help="Store features so; float16 takes half the room.  [default: float32]",
    ),
    click.option(
        "--compression",
        type=click.IntRange(0, 9),
        help="Level of gzip for the features; it makes reading slow.  [default: 0, none]",
    ),
    click.option(
        "--sharded/--single-file",
        default=None,
        help="Keep the features in shards, with a small index, or in one file.  "
        "[default: one file]",
    ),
    click.option(
        "--wait",
        "wait_seconds",
        type=click.FloatRange(min=0),
        default=0.0,
        help="Seconds to wait for another writer of OUTPUT.  [default: 0]",
    ),
)


def _parse_part(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Part | None:
    """Return the part that the user means."""
    if text is None:
        return None
    from data_cache.part import Part

    try:
        return Part.parse(text)
    except ParameterError as error:
        raise click.BadParameter(str(error)) from error


scale_options = together(
    click.option(
        "--part",
        callback=_parse_part,
        metavar="K/N",
        help="Extract only the K-th of N parts of SOURCE. Any number of such jobs may run side by "
        "side, on any machines that share OUTPUT; `feature-cache merge OUTPUT`, or this command "
        "without --part, binds them. What part an image is in follows from its path alone.",
    ),
    click.option(
        "--cluster",
        metavar="tcp://HOST:8786|local:N",
        help="Extract on the workers of a Dask cluster, or on N worker processes here. SOURCE and "
        "OUTPUT must lie where all workers see them.",
    ),
)


@click.command(cls=Command)
@click.argument("source")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The cache, an HDF5 file."
)
@backbone_options
@click.option(
    "--layer",
    default="avg_pool",
    show_default=True,
    metavar="NAME[+NAME...]",
    help="The layer of the backbone whose output is kept, flattened; several one after another.",
)
@source_options
@image_options
@engine_options
@update_options
@scale_options
@click.option(
    "--plan",
    is_flag=True,
    help="Print how many images, shards, bytes and about how much time it would take; start and "
    "write nothing.",
)
@click.option("--profile", is_flag=True, help="Show where the time went.")
@click.pass_context
def extract_features(ctx: click.Context, source: str, output: Path, **choices: Any) -> None:
    """Extract the features of every image in SOURCE, once, into the cache OUTPUT.

    SOURCE is a built-in set (fashion_mnist, mnist, cifar10, cifar100), a folder with one folder
    for each class, a table (CSV or TSV) with the columns path and label, or arrays (.npz, .npy,
    .h5). An existing cache is brought up to date: only what is missing is extracted.

    \b
    Example:
      extract-features fashion_mnist --output fashion.h5 --train-limit 4000 --test-limit 3000
      extract-features photos/ --output photos.h5
      extract-features photos/ --output photos.h5 --part 3/64
      extract-features photos/ --output photos.h5 --cluster local:4
      extract-features photos/ --output photos_block_14.h5 --layer block_14_add
    """
    from extract.estimate import estimate
    from extract.extraction import extract_features as extract
    from extract.sources import SourceOptions, open_source

    options = _extraction_options(choices)
    opened = open_source(source, pick(SourceOptions, choices))
    if choices["plan"]:
        click.echo("\n".join(estimate(opened, output, options).lines()))
        return
    report = extract(opened, output, options)
    _show(report, output, with_profile=choices["profile"])
    ctx.exit(report.exit_code)


def pick(kind: type[_Options], choices: dict[str, Any], **more: Any) -> _Options:
    """Make a dataclass of options from those of the command's that have its fields' names."""
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in choices.items() if name in names}, **more)


def _extraction_options(choices: dict[str, Any]) -> ExtractionOptions:
    """Group the command's options as the library takes them."""
    from data_cache.update import UpdateOptions
    from extract.decode import DecodeOptions
    from extract.extraction import ExtractionOptions

    return pick(
        ExtractionOptions,
        choices,
        decoding=pick(DecodeOptions, choices),
        update=pick(UpdateOptions, choices),
    )


def _show(report: ExtractionReport, output: Path, *, with_profile: bool) -> None:
    """Print what was done, the images left out, and where the time went."""
    speed = f" ({report.n_extracted / report.seconds:,.0f} images/s)" if report.n_extracted else ""
    click.echo(f"{output}: {report.outcome}{speed}")
    for image in report.bad_images[:_N_BAD_SHOWN]:
        place = "/".join(filter(None, [image.split, image.id]))
        click.echo(f"left out: {place}: {image.reason}")
    if len(report.bad_images) > _N_BAD_SHOWN:
        click.echo(f"left out: {len(report.bad_images) - _N_BAD_SHOWN:,} more")
    if with_profile:
        for stage, seconds in report.profile.items():
            click.echo(f"{stage:>8} {seconds:8.2f} core-seconds")
