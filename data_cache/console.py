"""What the user sees: commands that never show a traceback for a mistake, and progress.

Nothing here imports numpy, h5py or TensorFlow, so ``--help`` stays instant.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import click

from data_cache.errors import HeadstartError

Callback = Callable[..., Any]
"""The function behind a command, or what its options have made of it."""

Advance = Callable[[int], None]
"""Called with the number of items done since the last call."""


class Command(click.Command):
    """A click command that turns this project's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a :class:`HeadstartError` becomes ``Error: ...`` and its exit code."""
        _open_closed_descriptors()
        try:
            with _termination_as_interrupt():
                return super().invoke(ctx)
        except HeadstartError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


def together(*options: Callable[[Callback], Callback]) -> Callable[[Callback], Callback]:
    """Make one decorator of several options, in the order in which ``--help`` shows them."""

    def decorate(callback: Callback) -> Callback:
        for option in reversed(options):
            callback = option(callback)
        return callback

    return decorate


def _open_closed_descriptors() -> None:
    """Open the null device for each standard stream that was closed when Python started.

    Its descriptor would else be that of the next file that is opened, and native code that writes
    to standard error would write into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Have SIGTERM end the body as Ctrl-C does, so that it keeps what is done."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def say(message: str) -> None:
    """Tell the user one line on standard error, which results never share."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """Tell the user one line that starts with ``Warning:`` on standard error."""
    say(f"Warning: {message}")


def import_keras() -> ModuleType:
    """Import Keras (and so TensorFlow) with TensorFlow's own log silenced; return the module.

    TensorFlow writes to the process's standard error before any log level holds, so the
    descriptor itself is turned away while the import runs. A level set by the user stays.

    At exit its objects are put out of the garbage collector's sight: searching all of them for
    cycles one last time takes a second, for memory that goes back to the system anyway.
    """
    if "tensorflow" not in sys.modules:
        atexit.register(gc.freeze)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with standard_error_silenced():
        import tensorflow  # noqa: F401  (Keras imports parts of it lazily, and they log too)
    import keras

    return keras


@contextmanager
def standard_error_silenced() -> Iterator[None]:
    """Send descriptor 2, where native code writes, to the null device while the body runs.

    Where standard error was closed when Python started, 2 may be any file's, and is left alone.
    """
    if sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextmanager
def progress(
    label: str | Callable[[], str], total: int | None, unit: str = "images"
) -> Iterator[Advance]:
    """Show a bar with the rate and the time left while the body runs; yield its ``advance``.

    A ``label`` that is a function is asked again whenever the bar moves.
    ``total`` is None where it is not known beforehand. On a standard error that is not a terminal
    nothing is shown.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda _n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} " + unit + "/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        words = label if callable(label) else lambda: label
        task = bar.add_task(words(), total=total, rate="–")

        def advance(n: int) -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=n, description=words(), rate=f"{speed:,.0f}" if speed else "–")

        yield advance
