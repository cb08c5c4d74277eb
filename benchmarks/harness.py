"""What every benchmark does: both sides in one run, in turn; medians and ratios; JSON on request.

Absolute times mean little on a machine that others use too; the ratio of two sides that took turns
means much. Nothing is reported before the sides' results have been compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Side = Callable[[], float | None]
"""Does a side's work once; returns its seconds, or None to have the whole call timed."""


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Run every side once a round, in turn, after one round that does not count; in seconds.

    Every other round goes the other way round, so that no side always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            side = sides[name]
            start = time.perf_counter()
            told = side()
            taken = time.perf_counter() - start if told is None else told
            if turn:
                seconds[name].append(taken)
    return seconds


@dataclass
class Report:
    """The figures of one benchmark."""

    title: str
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str = "") -> None:
        """Keep a figure and print it."""
        self.figures[name] = value
        print(f"  {name:<58} {value:>10,.3f} {unit}", flush=True)

    def add_rates(self, seconds: Mapping[str, Sequence[float]], counts: Mapping[str, int]) -> None:
        """Keep each side's median rate, in images a second."""
        for name, taken in seconds.items():
            self.add(name, counts[name] / median(taken), "images/s")

    def write(self, path: Path | None) -> None:
        """Write the figures and the machine as JSON."""
        if path is None:
            return
        record = {"benchmark": self.title, "machine": machine(), "figures": self.figures}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def threaded(engine: Any, batch: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Run an engine on (n, S, S, 3) images, ``size`` a call, as many calls at once as it takes."""
    parts = [batch[at : at + size] for at in range(0, len(batch), size)]
    with ThreadPoolExecutor(engine.n_concurrent) as pool:
        return np.concatenate(list(pool.map(engine, parts)))


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: each round's sides ran side by side."""
    return median(a / b for a, b in zip(over, under, strict=True))


def machine() -> dict[str, Any]:
    """Describe the machine in general terms."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser
