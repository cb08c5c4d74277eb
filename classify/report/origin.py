"""What results were made from: recipe, provenance, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classify.report.page import Cell, Section, Table
from classify.report.tables import plain

_RENAMED = {"created": "features created"}
"""Names of provenance that would be taken for something else beside those of the results."""


def origin_section(
    own: Mapping[str, Any],
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any],
    versions: Mapping[str, Any],
) -> Section:
    """List what results say of themselves, then what their cache was made of, then the packages.

    Values that are None or mappings are left out.
    """
    of_cache = {_RENAMED.get(name, name): value for name, value in provenance.items()}
    rows = tuple(
        (Cell(plain(name)), Cell(_text(value)))
        for group in (own, recipe, of_cache, versions)
        for name, value in group.items()
        if not isinstance(value, Mapping) and value is not None
    )
    return Section("What it was made from", (Table("Origin", ("what", "value"), rows),))


def _text(value: object) -> str:
    """Return a value as text, whole numbers with their thousands apart."""
    return f"{value:,}" if type(value) is int else str(value)
