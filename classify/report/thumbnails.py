"""Small pictures of images by their ids, where the source that they came from is at hand.

Nothing is downloaded and nothing outside the source's folder is read, whatever an id says.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.errors import BadImageError, HeadstartError
from extract.assets import find_here
from extract.datasets import DATASETS
from extract.decode import Pixels, decode
from extract.sources.base import Raw

SIDE = 96
"""The longest side of a thumbnail, in pixels."""

Find = Callable[[str], Raw | None]
"""Returns the image that an id names, or None."""


def thumbnail(image_id: str, find: Find) -> str:
    """Return a ``data:`` address of a small picture; empty where there is none to be had."""
    try:
        raw = find(image_id)
        return "" if raw is None else _as_address(decode(raw))
    except (BadImageError, OSError, ValueError, LookupError):
        return ""


def find_images(source: str) -> Find:
    """Return what finds the images of a source: a folder, a table in a folder, a built-in set."""
    if source in DATASETS:
        return _in_set(source)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return _in_folder(folder) if path.exists() else _nowhere


def _nowhere(_image_id: str) -> None:
    """Find nothing."""


def _in_folder(folder: Path) -> Find:
    """Return what finds the files of a folder."""
    root = folder.resolve()

    def find(image_id: str) -> bytes | None:
        path = (root / image_id).resolve()
        return path.read_bytes() if path.is_relative_to(root) and path.is_file() else None

    return find


def _in_set(name: str) -> Find:
    """Return what finds the images of a built-in set, if its files are on this machine."""
    known = DATASETS[name]
    images_of = cache(known.images)

    def find(image_id: str) -> np.ndarray | None:
        split, _, row = image_id.partition("/")
        return np.asarray(images_of(split)[int(row)])

    try:
        is_here = all(find_here(file) for file in known.files)
    except HeadstartError:
        is_here = False
    return find if is_here else _nowhere


def _as_address(pixels: Pixels) -> str:
    """Return decoded pixels (h, w, 1 or 3) as a small picture in a ``data:`` address."""
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    image = Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole)
    is_small = max(image.size) <= SIDE
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG" if is_small else "JPEG")
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}"
