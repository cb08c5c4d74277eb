"""What the user sees: one line for a mistake, and progress only where somebody looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from data_cache.console import Command, progress, say, warn
from data_cache.errors import CacheCorruptError, CacheNotFoundError, HeadstartError


def command_raising(error):
    @click.command(cls=Command)
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(CacheNotFoundError("x.h5 is not there"), 2), (CacheCorruptError("x.h5 is torn"), 1)],
)
def test_a_mistake_is_one_line_and_an_exit_code(error, code):
    result = CliRunner().invoke(command_raising(error))
    assert result.exit_code == code
    assert result.stderr == f"Error: {error}\n"
    assert result.stdout == ""


@pytest.mark.skipif(os.name != "posix", reason="descriptors are closed by a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_gets_the_descriptor_of_a_closed_stream(closed, tmp_path):
    program = (
        "import click, os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from data_cache.console import Command, say, standard_error_silenced\n"
        "@click.command(cls=Command)\n"
        "def command():\n"
        "    with Path(sys.argv[1]).open('w') as stream:\n"
        "        say('a message')\n"
        "        with standard_error_silenced():\n"
        "            os.write(2, b'from native code')\n"
        "        subprocess.run([sys.executable, '-c', 'import os; os.write(2, bytes(1))'])\n"
        "        stream.write(str(stream.fileno() > 2))\n"
        "command([])\n"
    )
    path = tmp_path / "file"
    words = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words],
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0
    assert path.read_text() == "True"


def test_any_other_error_keeps_its_traceback():
    result = CliRunner().invoke(command_raising(ZeroDivisionError()))
    assert isinstance(result.exception, ZeroDivisionError)


def test_every_error_is_caught_by_the_base():
    assert issubclass(CacheNotFoundError, HeadstartError)
    assert issubclass(CacheNotFoundError, FileNotFoundError)


def test_messages_go_to_standard_error(capsys):
    say("hello")
    warn("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\nWarning: careful\n"


def test_progress_is_quiet_where_nobody_looks(capsys):
    with progress("reading", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_progress_shows_the_count_and_the_rate_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress("reading", 10, unit="images") as advance:
        advance(4)
        advance(6)
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "10/10" in shown
    assert "images/s" in shown


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals on this system")
def test_termination_ends_a_command_as_ctrl_c_does() -> None:
    cleaned = []

    @click.command(cls=Command)
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(command)
    assert (result.exit_code, cleaned) == (1, [True])
    assert signal.getsignal(signal.SIGTERM) == before
