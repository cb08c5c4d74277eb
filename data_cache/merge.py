"""Put several caches of one recipe, or the parts of one cache, together; nothing is extracted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_cache.bad_images import write_bad_images
from data_cache.bound import BadRow
from data_cache.cache import FeatureCache
from data_cache.console import warn
from data_cache.digests import KeyIndex, as_keys
from data_cache.errors import CacheError, RecipeMismatchError
from data_cache.existing import refuse_output
from data_cache.layout import parts_folder
from data_cache.leaks import LeakReport, exact_duplicates
from data_cache.manifests import concatenate, relabel, without
from data_cache.part_records import (
    complete_set,
    drop_strays,
    join_records,
    names_of,
    read_records,
)
from data_cache.recipe import Provenance
from data_cache.rows import BadImage, Manifest, Rows
from data_cache.update import CacheUpdate, UpdateOptions


def merge_or_bind(
    paths: Sequence[Path],
    output: Path | None,
    *,
    prefix: bool = False,
    overwrite: bool = False,
    sharded: bool = False,
) -> tuple[BadImage, ...]:
    """Merge caches into ``output`` or, without one, bind the parts of the only cache.

    Return the images that the parts left out.

    Raises
    ------
    CacheError
        Several caches, or ``prefix``, and no ``output``; else as :func:`merge` and
        :func:`bind_parts`.
    """
    if output is not None:
        merge(paths, output, prefix=prefix, overwrite=overwrite, sharded=sharded)
        return ()
    if len(paths) > 1 or prefix:
        raise CacheError("say with --output where to write the cache that they are merged into")
    return bind_parts(paths[0], overwrite=overwrite, sharded=sharded)


def merge(
    paths: Sequence[Path],
    output: Path,
    *,
    prefix: bool = False,
    overwrite: bool = False,
    sharded: bool = False,
) -> Manifest:
    """Write the rows of several caches into one at ``output``; return what it holds.

    Rows with the same id, content and class in the same split are one. Classes are joined by name,
    in the order in which they appear. With ``prefix`` the ids start with the name of the cache
    that they come from, ``birds/train/000017``. Images in more than one split are warned of.

    Raises
    ------
    RecipeMismatchError
        The caches were made by different recipes.
    CacheError
        An id stands for different images, or for different classes, in two caches; or one stores
        float16 and another float32.
    OutputExistsError
        ``output`` exists and ``overwrite`` is false.
    CacheFormatError
        ``output`` exists and is no cache.
    """
    refuse_output(output, overwrite=overwrite)
    with ExitStack() as stack:
        caches = [stack.enter_context(FeatureCache.open(path)) for path in paths]
        _check_recipes(caches)
        kept = caches[0].storage
        options = UpdateOptions(dtype=kept.dtype, compression=kept.compression, sharded=sharded)
        names = [f"{cache.path.stem}/" if prefix else "" for cache in caches]
        manifest = _merged([_named(*pair) for pair in zip(caches, names, strict=True)])
        _warn_of_leaks(manifest, output)
        with CacheUpdate.begin(
            output, caches[0].recipe, _provenance(caches), overwrite=overwrite, options=options
        ) as update:
            bad_images: dict[BadImage, None] = {}
            for cache, name in zip(caches, names, strict=True):
                bad_rows = _named_bad_rows(cache, name)
                update.lend(cache.stores(), bad_rows)
                bad_images |= dict.fromkeys(row.image for row in bad_rows)
            update.bind(manifest, list(bad_images))
    return manifest


def bind_parts(
    path: Path, *, overwrite: bool = False, sharded: bool = False
) -> tuple[BadImage, ...]:
    """Bind the parts of the cache at ``path``; return the images that they left out.

    The result is that of one run over the whole source. A cache that has all of it stays untouched.
    Records of parts that belong to another set are warned of, and dropped once the cache is bound.

    Raises
    ------
    CacheError
        Parts have not finished, or not with the same list of images and options.
    RecipeMismatchError
        Parts, or the cache that is there, were made by different recipes.
    CacheLockedError
        Another process is writing the cache.
    """
    folder = parts_folder(path)
    found = read_records(folder)
    if path.exists() and not found:
        with FeatureCache.open(path) as cache:
            if not cache.unbound_shards():
                return tuple(row.image for row in cache.bad_rows())
    records = complete_set(path, found)
    strays = [one for one in found if one.listing.cut != records[0].listing.cut]
    if strays:
        warn(
            f"{path}: {names_of(strays)} left out, and dropped once the others are bound: cut from "
            f"another list, with other options, or into another number than {names_of(records)}"
        )
    whole = join_records(records)
    bad_images = tuple(row.image for row in whole.bad_rows)
    sharded = sharded or any(record.storage.sharded for record in records)
    options = UpdateOptions(sharded=sharded or None)
    with CacheUpdate.begin(
        path, whole.recipe, whole.provenance, overwrite=overwrite, options=options
    ) as update:
        plan = update.plan(without(whole.manifest, bad_images))
        if plan.n_missing:
            raise CacheError(
                f"{path}: {plan.n_missing:,} images of its parts have no features: run the parts "
                "again, which redoes nothing that is finished"
            )
        update.lend((), whole.bad_rows)
        write_bad_images(path, bad_images)
        update.bind(whole.manifest, bad_images)
        drop_strays(folder, strays)
    return bad_images


def _check_recipes(caches: Sequence[FeatureCache]) -> None:
    """Refuse caches of different recipes, naming two and how they differ."""
    first = caches[0]
    for other in caches[1:]:
        if other.recipe != first.recipe:
            differences = ", ".join(first.recipe.differences(other.recipe))
            raise RecipeMismatchError(
                f"{other.path} was made otherwise than {first.path} ({differences} there): only "
                "caches of one recipe can be merged"
            )
        if other.storage.dtype != first.storage.dtype:
            raise CacheError(
                f"{other.path} stores {other.storage.dtype} and {first.path} {first.storage.dtype}:"
                " only caches of one precision can be merged"
            )


def _named(cache: FeatureCache, name: str) -> Manifest:
    """Return the manifest of a cache, its ids with a name before them."""
    manifest = cache.manifest()
    if not name:
        return manifest
    splits = {
        split: replace(rows, ids=np.char.add(name.encode(), rows.ids))
        for split, rows in manifest.splits.items()
    }
    return Manifest(manifest.classes, splits)


def _named_bad_rows(cache: FeatureCache, name: str) -> list[BadRow]:
    """Return the images that were left out of a cache, their ids with a name before them."""
    return [
        replace(row, image=replace(row.image, id=name + row.image.id)) for row in cache.bad_rows()
    ]


def _merged(manifests: Sequence[Manifest]) -> Manifest:
    """Return every row of some manifests, each once."""
    classes = tuple(dict.fromkeys(name for one in manifests for name in one.classes))
    names = dict.fromkeys(split for one in manifests for split in one.splits)
    splits = {}
    for split in names:
        parts = [
            relabel(m.splits[split], m.classes, classes) for m in manifests if split in m.splits
        ]
        splits[split] = _distinct(split, concatenate(parts))
    return Manifest(classes, splits)


def _distinct(split: str, rows: Rows) -> Rows:
    """Return rows without those that say what an earlier one says."""
    first = KeyIndex(rows.ids).find(rows.ids)
    again = first < np.arange(len(rows))
    before, after = rows.take(first[again]), rows.take(again)
    differs = as_keys(before.content) != as_keys(after.content)
    differs |= before.labels != after.labels
    if differs.any():
        raise CacheError(
            f"{split}: {int(differs.sum()):,} ids stand for different images or classes in two "
            f"caches (first: {after.ids[differs][0].decode()}): tell them apart with --prefix"
        )
    return rows.take(~again)


def _warn_of_leaks(manifest: Manifest, output: Path) -> None:
    """Tell how many images came to lie in more than one split."""
    copies = exact_duplicates(manifest.splits, manifest.classes)
    across = LeakReport(tuple(one for one in copies if one.crosses_splits), ())
    for words in across.copies_in_words():
        warn(f"{words} of {output}: `feature-cache leaks {output}` lists them")


def _provenance(caches: Sequence[FeatureCache]) -> Provenance:
    """Return the provenance of the first cache, with the sources of all."""
    sources = dict.fromkeys(cache.provenance.source for cache in caches)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(caches[0].provenance, source="; ".join(sources), created=created)
