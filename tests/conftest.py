"""Fixtures that many test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cache_tools import write_cache
from hypothesis import settings

if TYPE_CHECKING:
    from export_tools import Exports

# The clock of a shared machine says nothing about the code.
settings.register_profile("headstart", deadline=None, max_examples=50)
settings.load_profile("headstart")


@pytest.fixture(autouse=True, scope="session")
def memory_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep hints (digests by stat) out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_MEMORY", str(tmp_path_factory.mktemp("memory")))
        yield


@pytest.fixture(scope="session")
def make_cache() -> Callable[..., Path]:
    """Return a function that writes a real cache: ``make_cache(path, {split: (X, y)})``."""
    return write_cache


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Return a small run, and its exports as they are asked for."""
    from export_tools import Exports

    return Exports(tmp_path_factory.mktemp("exports"))
