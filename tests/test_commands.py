"""What holds of every command: help, examples, the README, and how fast help appears."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def entry_points() -> dict[str, str]:
    lines = SETUP["options.entry_points"]["console_scripts"].split("\n")
    pairs = (line.split("=") for line in lines if line.strip())
    return {name.strip(): target.strip() for name, target in pairs}


def load(target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


def walk(name: str, command: click.Command) -> list[tuple[str, click.Command]]:
    found = [(name, command)]
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            found += walk(f"{name} {word}", inner)
    return found


COMMANDS = [pair for name, target in entry_points().items() for pair in walk(name, load(target))]
NAMES = [name for name, _ in COMMANDS]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=NAMES)
def test_readme_names_the_command(name: str, command: click.Command) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=NAMES)
def test_help_ends_with_an_example_of_the_command(name: str, command: click.Command) -> None:
    if isinstance(command, click.Group):
        pytest.skip("a group: its commands have the examples")
    text = command.get_help(click.Context(command, info_name=name))
    example = text.partition("Example:")[2].partition("Options:")[0]
    assert name in example


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=NAMES)
def test_every_option_has_help(name: str, command: click.Command) -> None:
    silent = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    assert not silent


@pytest.mark.parametrize("name", entry_points())
def test_help_imports_nothing_heavy(name: str) -> None:
    module, _, attribute = entry_points()[name].partition(":")
    script = (
        f"import sys; from {module} import {attribute} as command\n"
        "try: command(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'h5py', 'sklearn', 'matplotlib', 'PIL'}\n"
        "sys.exit(' '.join(heavy & sys.modules.keys()) or 0)"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout
