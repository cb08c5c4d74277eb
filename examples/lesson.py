"""The lesson's table on Fashion-MNIST, whole; `make lesson` runs it.

A head on frozen features and a fine-tuned backbone, from 4,000 images each; a network from scratch
on 15,000 images, as in the lesson, and on the same 4,000, which is the fair comparison. All are
tested on the same 3,000 images. :mod:`preparation` says where the data and the weights come from.

Everything made here goes into the folder `demo/lesson`. What is there already is not made again,
so a run that was interrupted goes on; remove the folder to begin anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from preparation import DEMO, N_TEST, N_TRAIN, command, extract, prepare

from data_cache.errors import HeadstartError

LESSON = DEMO / "lesson"
N_FROM_SCRATCH = 15_000
FINE_TUNING = [
    "--from-cache",
    "--views",
    "12",
    "--learning-rate",
    "2e-4",
    "--schedule",
    "cosine",
    "--epochs",
    "12",
]
SOURCE = "fashion_mnist"


def main() -> int:
    """Make every run that is not there yet, then the table; return the exit code."""
    cache = DEMO / "fashion.h5"
    try:
        prepare()
        failed = extract(cache)
    except HeadstartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    runs = [LESSON / name for name in ("frozen", "fine_tuned", "scratch_15000", "scratch_4000")]
    frozen, fine_tuned, scratch, scratch_few = runs
    tuning = ["--head", str(frozen), *FINE_TUNING, *limits(N_TRAIN)]
    return (
        failed
        or make(frozen, "train-head", str(cache))
        or make(fine_tuned, "fine-tune", SOURCE, *tuning)
        or make(scratch, "train-baseline", SOURCE, *limits(N_FROM_SCRATCH))
        or make(scratch_few, "train-baseline", SOURCE, *limits(N_TRAIN))
        or compare(runs)
    )


def limits(n_train: int) -> list[str]:
    """Return the options for so many training images, and the test that all have."""
    return ["--train-limit", str(n_train), "--test-limit", str(N_TEST)]


def make(run: Path, name: str, *arguments: str) -> int:
    """Run a command that writes a run, unless the run is there; runs are there whole or not."""
    if run.exists():
        print(f"\n{run.relative_to(DEMO.parent)} is there already")
        return 0
    return command(name, *arguments, "--output", str(run))


def compare(runs: list[Path]) -> int:
    """Print the table, and write it with its figure."""
    table = LESSON / "table"
    options = ["--model", "all", "--output", str(table), "--overwrite"]
    return command("compare-runs", *map(str, runs), *options)


if __name__ == "__main__":
    sys.exit(main())
