"""The root attributes that every file of a cache carries: what it is, and what made its rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

import h5py

from data_cache.errors import CacheCorruptError, CacheFormatError
from data_cache.hdf5 import naming_damage
from data_cache.layout import FORMAT, VERSION
from data_cache.recipe import Provenance, Recipe
from data_cache.seal import MENDING, unknown_version


def write_identity(file: h5py.File, kind: str, recipe: Recipe) -> None:
    """Stamp a file with the format, its ``kind`` (``cache`` or ``shard``) and the recipe."""
    stamp = {"format": FORMAT, "format_version": VERSION, "kind": kind}
    file.attrs.update(stamp | asdict(recipe) | {"recipe_digest": recipe.digest()})


def write_provenance(file: h5py.File, provenance: Provenance) -> None:
    """Write where the features came from, one attribute a field; the versions as JSON."""
    versions = json.dumps(dict(provenance.versions), sort_keys=True)
    values = asdict(provenance) | {"versions": versions}
    file.attrs.update(values | {"provenance_digest": _digest(values)})


def check_format(file: h5py.File, kind: str) -> None:
    """See that a file is of this format, version and kind.

    Raises
    ------
    CacheVersionError
        It is of another version.
    CacheFormatError
        It is of another format or kind.
    CacheCorruptError
        It cannot be told.
    """
    with naming_damage(file.filename):
        found = [file.attrs.get(name) for name in ("format", "format_version", "kind")]
    if found[0] != FORMAT:
        raise CacheFormatError(
            f"{file.filename} is an HDF5 file but not a feature cache: no attribute "
            f"format={FORMAT!r}; choose a file that `extract-features` wrote"
        )
    if found[1] != VERSION:
        raise unknown_version(file.filename, found[1])
    if found[2] is None:
        raise CacheFormatError(
            f"{file.filename} has no kind, so it was not written by headstart: choose another file"
        )
    if found[2] != kind:
        raise CacheFormatError(f"{file.filename} is a {found[2]} of a cache; a {kind} was expected")


def read_recipe(file: h5py.File) -> Recipe:
    """Return the recipe of a file.

    Raises
    ------
    CacheFormatError
        A field is missing.
    CacheCorruptError
        The fields do not have the digest that was recorded with them.
    """
    recipe = Recipe(**{one.name: read_attribute(file, one.name) for one in fields(Recipe)})
    if recipe.digest() != read_attribute(file, "recipe_digest"):
        raise CacheCorruptError(
            f"{file.filename}: its recipe does not have the digest recorded with it: the file was "
            "damaged or edited; extract the features again"
        )
    return recipe


def read_provenance(file: h5py.File) -> Provenance:
    """Return where the features of a file came from; fields that it lacks have their defaults.

    Raises
    ------
    CacheCorruptError
        The fields do not have the digest that was recorded with them.
    """
    names = [one.name for one in fields(Provenance) if one.name in file.attrs]
    values = {name: read_attribute(file, name) for name in names}
    if _digest(values) != read_attribute(file, "provenance_digest"):
        raise CacheCorruptError(f"{file.filename}: its provenance was damaged: {MENDING}")
    return Provenance(**values | {"versions": json.loads(values["versions"])})


def _digest(values: dict[str, Any]) -> str:
    """Return the SHA-256 (64 hex digits) of attributes as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_attribute(file: h5py.File, name: str) -> Any:
    """Return a root attribute as a plain Python value."""
    try:
        value = file.attrs[name]
    except (KeyError, OSError) as error:
        raise CacheFormatError(
            f"{file.filename} lacks the attribute {name}, which every feature cache has"
        ) from error
    return value.tolist() if hasattr(value, "tolist") else value
