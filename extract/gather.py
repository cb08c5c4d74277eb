"""Gathering what ``HEADSTART_ASSETS`` is to hold, for machines without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.assets import RemoteFile, fetch
from extract.backbones import get_backbone
from extract.datasets import get_dataset


@dataclass(frozen=True)
class Wanted:
    """The backbones whose weights are wanted, at which image sizes, and the built-in sets."""

    backbones: Sequence[str]
    image_sizes: Sequence[int]
    datasets: Sequence[str]

    def files(self) -> Iterator[tuple[str, RemoteFile]]:
        """Yield every file, once, with the folder that it belongs in."""
        weights = {
            get_backbone(name).weights_file(size): None
            for name in self.backbones
            for size in self.image_sizes
        }
        yield from (("weights", file) for file in weights)
        for name in self.datasets:
            yield from (("datasets", file) for file in get_dataset(name).files)


def gather(wanted: Wanted, folder: Path) -> Iterator[Path]:
    """Bring every file wanted into ``folder``; yield the path of each once it is there.

    Raises
    ------
    BackboneError, UnknownSourceError
        Something is wanted that does not exist; nothing has been fetched then.
    AssetError
        A file is neither on this machine nor to be downloaded. Files fetched before it stay.
    """
    for subfolder, file in list(wanted.files()):
        yield fetch(file, folder / subfolder)
