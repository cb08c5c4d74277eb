"""Fixtures that many test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cache_tools import write_cache
from hypothesis import settings

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
