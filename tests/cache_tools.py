"""Caches for tests: written by the real writer, with features that are cheap to make."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_cache.cache import FeatureCache
from data_cache.layout import Storage
from data_cache.manifests import same_manifest
from data_cache.plan import Plan
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage, Manifest, Rows
from data_cache.update import CacheUpdate, UpdateOptions
from data_cache.verify import verify

RECIPE = Recipe(
    backbone="mobilenet_v2",
    weights_digest="ab" * 32,
    image_size=96,
    preprocessing="mobilenet_v2/1",
    decoding="rgb8/1",
)
PROVENANCE = Provenance(
    source="synthetic",
    weights="none",
    weights_sha256="",
    engine="none",
    created="2026-01-01T00:00:00+00:00",
    versions={"headstart": "0.1.0"},
)
N_FEATURES = 8


def write_cache(
    path: Path,
    splits: Mapping[str, tuple[ArrayLike, ArrayLike]],
    classes: tuple[str, ...] | None = None,
    groups: Mapping[str, ArrayLike] | None = None,
    recipe: Recipe = RECIPE,
) -> Path:
    """Write features (n, d) and labels (n,) of each split into a cache; return its path.

    The ids are ``train/000017``, the classes ``0``, ``1``, ... where none are given. Rows with
    equal features count as the same image.
    """
    arrays = {
        split: (np.asarray(features, np.float32), np.asarray(labels, np.int64))
        for split, (features, labels) in splits.items()
    }
    n_classes = 1 + max(int(labels.max(initial=-1)) for _, labels in arrays.values())
    rows = {
        split: make_rows(split, digests_of(features), labels, (groups or {}).get(split))
        for split, (features, labels) in arrays.items()
    }
    manifest = Manifest(classes or tuple(map(str, range(n_classes))), rows)
    with CacheUpdate.begin(path, recipe, PROVENANCE) as update:
        for split, (features, _) in arrays.items():
            update.append(rows[split].content, features)
        update.bind(manifest)
    return path


def make_rows(
    split: str, content: NDArray[np.uint8], labels: NDArray[np.int64], groups: Any = None
) -> Rows:
    """Return rows with ids ``split/000017``."""
    ids = np.array([f"{split}/{row:06d}".encode() for row in range(len(labels))], "S")
    return Rows(
        ids if len(ids) else np.empty(0, "S1"),
        labels,
        content,
        None if groups is None else np.asarray(groups, "S"),
    )


def digests_of(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the SHA-256 of each row's bytes, (n, 32) uint8."""
    digests = [hashlib.sha256(row.tobytes()).digest() for row in np.ascontiguousarray(rows)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def fake_engine(content: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return features, (n, 8) float32, that depend on nothing but the content."""
    return content[:, :N_FEATURES].astype(np.float32) / 7


def manifest_of(
    splits: Mapping[str, Mapping[str, tuple[str, str]]], classes: tuple[str, ...] = ("ant", "bee")
) -> Manifest:
    """Return a manifest from ``{split: {id: (content, class)}}``, contents as any text."""
    return Manifest(
        classes,
        {
            split: Rows(
                np.array([name.encode() for name in rows], "S") if rows else np.empty(0, "S1"),
                np.array([classes.index(label) for _, label in rows.values()], np.int64),
                contents_of([content for content, _ in rows.values()]),
            )
            for split, rows in splits.items()
        },
    )


def contents_of(texts: list[str]) -> NDArray[np.uint8]:
    """Return the SHA-256 of each text, (n, 32) uint8."""
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def update_cache(
    path: Path,
    manifest: Manifest,
    bad_images: tuple[BadImage, ...] = (),
    batch_size: int = 5,
    storage: Storage | None = None,
    **options: Any,
) -> Plan:
    """Run a whole update with the fake engine; return its plan."""
    bad = {(image.split, image.id) for image in bad_images}
    chosen = UpdateOptions(**options, **(asdict(storage) if storage else {}))
    with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=chosen) as update:
        plan = update.plan(manifest)
        for split, rows in plan.missing.items():
            part = manifest.splits[split].take(rows)
            good = np.array([(split, name.decode()) not in bad for name in part.ids], bool)
            content = part.content[good]
            for start in range(0, len(content), batch_size):
                batch = content[start : start + batch_size]
                update.append(batch, fake_engine(batch))
        update.bind(manifest, (*plan.known_bad, *bad_images))
    return plan


def assert_same_cache(found_path: Path, expected_path: Path) -> None:
    """See that two caches hold the same, and that every byte of the first is as it was written.

    Ids, labels, their order, contents, classes and what was left out are equal; features lie within
    1e-5 of the largest.
    """
    assert verify(found_path).faults == ()
    with FeatureCache.open(found_path) as found, FeatureCache.open(expected_path) as expected:
        assert found.recipe == expected.recipe
        assert same_manifest(found.manifest(), expected.manifest())
        assert set(found.bad_rows()) == set(expected.bad_rows())
        for split in expected.split_names:
            features = expected.features(split)
            largest = float(np.abs(features).max())
            np.testing.assert_allclose(found.features(split), features, atol=1e-5 * largest, rtol=0)
