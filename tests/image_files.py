"""Small image files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def png_bytes(seed: int, side: int = 8) -> bytes:
    """Return a PNG of random colors that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, n_images: int, seed: int = 0) -> list[Path]:
    """Write ``n_images`` different PNGs into a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed + i:04d}.png" for i in range(n_images)]
    for i, path in enumerate(paths):
        path.write_bytes(png_bytes(seed + i))
    return paths


def write_ants_and_bees(folder: Path, n_images: int) -> Path:
    """Write ``n_images`` different PNGs of each of two classes below a folder; return it."""
    for k, name in enumerate(("ant", "bee")):
        write_images(folder / name, n_images, seed=1000 * k)
    return folder
