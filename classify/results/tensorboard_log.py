"""A run as TensorBoard shows it: the Dense head's curves, and a sweep's trials.

Event files are written record by record with TensorBoard's own package, one file a run: a thousand
writers of TensorFlow's would each have a thread and a queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.console import import_keras
from data_cache.errors import ParameterError

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_EVENTS_FILE = "events.out.tfevents.headstart"
_VERSION = "brain.Event:2"
"""What the first record of an event file says."""


@dataclass(frozen=True)
class Session:
    """A trained head in the hparams view.

    Attributes
    ----------
    name : of its folder
    group : heads of one group, such as those that differ in their seed, are shown as one
    hyperparameters : by name; None for one that is not used
    figures : by name; NaN where the head diverged
    """

    name: str
    group: str
    hyperparameters: Mapping[str, Any]
    figures: Mapping[str, float]


def check_tensorboard() -> None:
    """Raise :class:`ParameterError` where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise ParameterError("--tensorboard needs tensorboard: pip install '.[tensorboard]'")


def write_curves(folder: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Write the figures of each epoch: the runs ``train`` and ``validation``.

    The tags are those of Keras's own callback: ``epoch_loss`` and ``epoch_accuracy``.
    """
    for name, prefix in (("train", ""), ("validation", "val_")):
        with _event_file(folder / name) as write:
            for figure in ("loss", "accuracy"):
                for epoch, value in enumerate(history.get(f"{prefix}{figure}", ()), start=1):
                    write(_scalar(f"epoch_{figure}", value), step=epoch)


def write_sessions(folder: Path, sessions: Iterable[Session]) -> None:
    """Write a run for each session, for TensorBoard's hparams view."""
    import_keras()
    from tensorboard.plugins.hparams import api_pb2, summary

    for one in sessions:
        given = {name: value for name, value in one.hyperparameters.items() if value is not None}
        figures = {name: value for name, value in one.figures.items() if isfinite(value)}
        is_whole = len(figures) == len(one.figures)
        status = api_pb2.STATUS_SUCCESS if is_whole else api_pb2.STATUS_FAILURE
        with _event_file(folder / one.name) as write:
            write(_native(summary.session_start_pb(given, group_name=one.group)))
            for name, value in figures.items():
                write(_scalar(name, value))
            write(_native(summary.session_end_pb(status)))


@contextmanager
def _event_file(folder: Path) -> Iterator[Any]:
    """Yield a function that writes a summary into the event file of a run."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True)
    now = time.time()
    with (folder / _EVENTS_FILE).open("wb") as stream:
        records = RecordWriter(stream)
        records.write(Event(wall_time=now, file_version=_VERSION).SerializeToString())

        def write(summary: Summary, step: int = 0) -> None:
            event = Event(wall_time=now, step=step, summary=summary)
            records.write(event.SerializeToString())

        yield write


def _scalar(tag: str, value: float) -> Summary:
    """Return a scalar."""
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return scalar_pb(tag, value)


def _native(summary: Any) -> Summary:
    """Return a summary of TensorFlow's as one of TensorBoard's."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary.FromString(summary.SerializeToString())
