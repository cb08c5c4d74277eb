"""An extraction in a process of its own, for tests that kill it; with shards of a few rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from data_cache.part import Part
from data_cache.update import UpdateOptions
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import SourceOptions, open_source
from extract.workers import pool

SHARD_ROWS = 16


WITH_WORKERS = "workers"


def start(
    source: Path,
    output: Path,
    model: Path,
    *,
    part: str = "",
    cluster: str = "",
    stderr: Path = Path(os.devnull),
) -> subprocess.Popen[bytes]:
    """Begin an extraction with the model that ``write_tiny_onnx`` left in a folder.

    It leads a process group of its own, as a command that a shell starts does. The ``cluster``
    :data:`WITH_WORKERS` is worker processes of this machine, however few images there are.
    """
    words = [source, output, model, part, cluster]
    with stderr.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            process_group=0,
        )


def extract(source: Path, output: Path, model: Path, part: str = "", cluster: str = "") -> None:
    """Run an extraction in this process."""
    if cluster == WITH_WORKERS:
        pool.FEWEST_IMAGES, pool.FEWEST_CORES, cluster = 1, 2, ""
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    extract(*map(Path, sys.argv[1:4]), *sys.argv[4:])
