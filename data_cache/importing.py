"""Bring features from elsewhere into a cache, marked as such."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import array_digest, as_content
from data_cache.errors import DataError, SourceError
from data_cache.existing import refuse_output
from data_cache.hdf5 import encode_texts
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Manifest, Rows
from data_cache.update import CacheUpdate

_BATCH_ROWS = 4096

IMPORTED = "imported"
"""What the backbone of features from elsewhere is called, with their name after a colon."""


def import_features(
    features_file: Path,
    labels_file: Path,
    output: Path,
    *,
    name: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Write features from elsewhere into a cache, marked as such; return what it holds.

    ``features_file`` is a ``.npy`` of (n, d) numbers. ``labels_file`` is a CSV with n lines under
    a heading: ``label``, and where wanted ``id``, ``split`` (train, where it is empty) and
    ``group``. ``name`` says what made the features; only caches of one name can be merged.

    Raises
    ------
    SourceError
        A file is missing or not as it should be.
    DataError
        A feature is NaN or infinite.
    OutputExistsError
        ``output`` exists and ``overwrite`` is false.
    CacheFormatError
        ``output`` exists and is no cache.
    """
    refuse_output(output, overwrite=overwrite)
    features = _load_features(features_file)
    labels = _load_labels(labels_file, len(features))
    content = as_content([array_digest(row) for row in features])
    manifest = _manifest(labels, content)
    recipe = _imported_recipe(name or features_file.stem, features.dtype)
    with CacheUpdate.begin(
        output, recipe, _imported_provenance(features_file), overwrite=overwrite
    ) as update:
        for start in range(0, len(features), _BATCH_ROWS):
            rows = slice(start, start + _BATCH_ROWS)
            update.append(content[rows], _as_numbers(features[rows], start))
        update.bind(manifest)
    return manifest


def _as_numbers(features: NDArray[Any], start: int) -> NDArray[np.float32]:
    """Return features as float32, none NaN or infinite; ``start`` numbers the first row."""
    numbers = features.astype(np.float32)
    if not np.isfinite(numbers).all():
        row = start + int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
        raise DataError(
            f"row {row} of the features holds NaN or infinity: mend it, or leave it out"
        )
    return numbers


@dataclass(frozen=True)
class _Labels:
    """The columns of a table of labels, as texts."""

    ids: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]


def _load_features(path: Path) -> NDArray[Any]:
    """Open a ``.npy`` of (n, d) numbers without reading it; no pickled object is ever loaded."""
    try:
        features: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as a .npy file ({error}): save it with numpy.save"
        ) from error
    if features.ndim != len("nd"):
        raise SourceError(f"{path} does not hold one array of (rows, features)")
    if features.dtype.kind not in "fiu" or not features.size:
        raise SourceError(f"{path} holds {features.shape} {features.dtype}; numbers were expected")
    return features


def _load_labels(path: Path, n_rows: int) -> _Labels:
    """Read the table of labels."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a CSV file ({error})") from error
    if "label" not in (reader.fieldnames or ()):
        raise SourceError(f"{path} has no column `label`; it has: {reader.fieldnames}")
    if len(lines) != n_rows:
        raise SourceError(f"{path} has {len(lines):,} lines for {n_rows:,} rows of features")
    return _Labels(
        ids=[line.get("id") or f"{row:09}" for row, line in enumerate(lines)],
        labels=[line["label"] or "" for line in lines],
        splits=[line.get("split") or "train" for line in lines],
        groups=[line.get("group") or "" for line in lines] if "group" in lines[0] else [],
    )


def _manifest(labels: _Labels, content: NDArray[np.uint8]) -> Manifest:
    """Return the manifest of a table of labels; classes are sorted by name."""
    if not all(labels.labels):
        line = labels.labels.index("") + 2
        raise SourceError(f"line {line} of the labels has none; every row needs a label")
    classes, numbers = np.unique(labels.labels, return_inverse=True)
    rows = Rows(
        encode_texts(tuple(labels.ids)),
        numbers.astype(np.int64),
        content,
        encode_texts(tuple(labels.groups)) if labels.groups else None,
    )
    splits = np.array(labels.splits)
    names = dict.fromkeys(labels.splits)
    return Manifest(tuple(classes.tolist()), {name: rows.take(splits == name) for name in names})


def _imported_recipe(name: str, dtype: np.dtype[Any]) -> Recipe:
    """Return a recipe that says that nothing is known but a name."""
    return Recipe(
        backbone=f"{IMPORTED}:{name}",
        weights_digest="",
        image_size=0,
        preprocessing="unknown",
        decoding="unknown",
        resize_mode="unknown",
        feature_layer="unknown",
        numeric_class=dtype.name,
    )


def _imported_provenance(features_file: Path) -> Provenance:
    """Return where imported features came from."""
    return Provenance(
        source=str(features_file),
        weights="unknown: the features were imported",
        weights_sha256="",
        engine=IMPORTED,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
