"""The command ``headstart-assets``."""

from __future__ import annotations

from pathlib import Path

import click

from data_cache.console import Command


@click.group()
def headstart_assets() -> None:
    """Bring together the files that headstart would download."""


@headstart_assets.command(cls=Command)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder to fill; made if it is not there.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=["mobilenet_v2"],
    show_default=True,
    help="Whose ImageNet weights; may be given several times.",
)
@click.option(
    "--image-size",
    "image_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=[96, 224],
    show_default=True,
    help="For which image sizes, in pixels; may be given several times.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    default=["fashion_mnist"],
    show_default=True,
    help="Which built-in sets; may be given several times.",
)
def fetch(
    to: Path, backbones: tuple[str, ...], image_sizes: tuple[int, ...], datasets: tuple[str, ...]
) -> None:
    """Fetch weights and built-in sets into a folder, for machines without a network.

    Copied from this machine where it has them, else downloaded. On the other machine, set the
    environment variable HEADSTART_ASSETS to that folder.

    \b
    Example:
      headstart-assets fetch --to assets --backbone mobilenet_v2 --image-size 96
      HEADSTART_ASSETS=assets extract-features fashion_mnist --output fashion.h5
    """
    from extract.gather import Wanted, gather

    for path in gather(Wanted(backbones, image_sizes, datasets), to):
        click.echo(path)
    click.echo(f"now set HEADSTART_ASSETS to {to.resolve()}")
