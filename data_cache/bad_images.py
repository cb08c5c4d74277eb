"""The list beside a cache of the images that were left out of it, for people and spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from data_cache.files import whole_file
from data_cache.rows import BadImage


def bad_images_file(cache: Path) -> Path:
    """Return where the images that are left out of a cache are listed."""
    return cache.with_name(cache.name + ".bad_images.csv")


def write_bad_images(cache: Path, bad_images: Sequence[BadImage]) -> None:
    """List the images that are left out beside the cache; no list where there are none."""
    path = bad_images_file(cache)
    if not bad_images:
        path.unlink(missing_ok=True)
        return
    with (
        whole_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        rows = csv.writer(stream)
        rows.writerow(("split", "path", "reason"))
        rows.writerows((image.split, image.id, image.reason) for image in bad_images)
