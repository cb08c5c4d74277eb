"""An extraction in a process of its own, for tests that kill it; with shards of a few rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from data_cache.part import Part
from data_cache.update import UpdateOptions
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import SourceOptions, open_source

SHARD_ROWS = 16


def start(
    source: Path, output: Path, model: Path, *, part: str = "", cluster: str = ""
) -> subprocess.Popen[bytes]:
    """Begin an extraction with the model that ``write_tiny_onnx`` left in a folder."""
    words = [source, output, model, part, cluster]
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def extract(source: Path, output: Path, model: Path, part: str = "", cluster: str = "") -> None:
    """Run an extraction in this process."""
    options = ExtractionOptions(
        backbone=f"onnx:{model / 'tiny.onnx'}",
        preprocess=model / "tiny.json",
        batch_size=8,
        cluster=cluster or None,
        update=UpdateOptions(shard_rows=SHARD_ROWS),
    )
    listed = SourceOptions(part=Part.parse(part) if part else None)
    extract_features(open_source(str(source), listed), output, options)


if __name__ == "__main__":
    extract(*map(Path, sys.argv[1:4]), *sys.argv[4:])
