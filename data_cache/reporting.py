"""What ``feature-cache`` prints: the same facts in lines for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from data_cache.diff import Difference, SplitDifference
from data_cache.errors import HeadstartError
from data_cache.inspection import Inspection
from data_cache.repair import Repair
from data_cache.verify import Verification

_N_SHOWN = 10


def as_json(value: Any) -> str:
    """Return a dataclass, or a collection of them, as JSON; paths and errors become text."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def inspection_lines(found: Inspection) -> Iterator[str]:
    """Yield what a cache holds, line by line."""
    recipe, provenance = found.recipe, found.provenance
    n_rows = sum(split.n_rows for split in found.splits.values())
    yield f"{found.path}: {n_rows:,} rows of {found.n_features:,} features, {_size(found.n_bytes)}"
    yield from _table(
        {
            "backbone": f"{recipe.backbone}, layer {recipe.feature_layer}",
            "weights": f"{provenance.weights} (digest {recipe.weights_digest[:12] or 'unknown'})",
            "images": f"{recipe.image_size} pixels, {recipe.resize_mode}, {recipe.decoding}, "
            f"{recipe.preprocessing}",
            "source": provenance.source,
            "created": f"{provenance.created}, engine {provenance.engine}",
            "versions": ", ".join(f"{k} {v}" for k, v in provenance.versions.items()),
            "storage": _storage(found),
            "classes": f"{len(found.classes)}: {_listed(found.classes)}",
        }
    )
    for name, split in found.splits.items():
        groups = "" if split.n_groups is None else f" in {split.n_groups:,} groups"
        features = split.features
        yield (
            f"  {name}: {split.n_rows:,} rows{groups}; features {features.min:.4g} to "
            f"{features.max:.4g}, mean {features.mean:.4g}, std {features.std:.4g}, "
            f"{features.n_constant:,} constant"
        )
        counts = [f"{label} {count:,}" for label, count in split.class_counts.items()]
        yield f"    {_listed(counts)}"
    if found.bad_images:
        yield f"  {len(found.bad_images):,} images left out:"
        yield from (
            f"    {one.split}/{one.id}: {one.reason}" for one in found.bad_images[:_N_SHOWN]
        )
    if found.n_unbound_shards:
        yield f"  {found.n_unbound_shards:,} finished shards of a run that was interrupted"


def listing_lines(found: Sequence[Inspection | HeadstartError]) -> Iterator[str]:
    """Yield one line a cache."""
    for one in found:
        if isinstance(one, HeadstartError):
            yield f"damaged: {one}"
            continue
        rows = ", ".join(f"{name} {split.n_rows:,}" for name, split in one.splits.items())
        yield (
            f"{one.path}: {one.recipe.backbone} at {one.recipe.image_size}, "
            f"{len(one.classes)} classes, {rows}, {_size(one.n_bytes)}"
        )


def verification_lines(path: Path, found: Verification) -> Iterator[str]:
    """Yield every fault, and what was read."""
    yield from map(str, found.faults)
    shards = f" and {found.n_shards:,} shards" if found.n_shards else ""
    verdict = f"{len(found.faults):,} faults" if found.faults else "everything is as it was written"
    yield f"{path}: {found.n_rows:,} rows{shards}, {_size(found.n_bytes)} read: {verdict}"
    if found.faults:
        yield f"`feature-cache repair {path}` drops what is damaged, and nothing else"
    if found.n_unbound_parts:
        parts = (
            "1 part is" if found.n_unbound_parts == 1 else f"{found.n_unbound_parts:,} parts are"
        )
        yield f"{parts} not bound yet: `feature-cache merge {path}` binds them once all are there"


def repair_lines(path: Path, done: Repair) -> Iterator[str]:
    """Yield what a repair dropped, and what to do next."""
    if not done.was_needed:
        yield f"{path}: nothing is damaged"
        return
    yield from (f"dropped {shard}" for shard in done.dropped_shards)
    if done.set_aside is not None:
        yield f"nothing of {path} could be proven: it is now {done.set_aside}"
    else:
        yield f"{path}: {done.n_kept:,} rows kept, {done.n_dropped:,} dropped"
    yield "run the same `extract-features` again: it makes what is missing, and nothing else"


def difference_lines(found: Difference) -> Iterator[str]:
    """Yield how two caches differ, the second against the first."""
    if found.is_empty:
        yield "the same rows and features"
        return
    yield from (f"recipe: {one}" for one in found.recipe)
    if found.only_first_classes:
        yield f"classes only in the first: {_listed(found.only_first_classes)}"
    if found.only_second_classes:
        yield f"classes only in the second: {_listed(found.only_second_classes)}"
    for name, split in found.splits.items():
        yield f"{name}: {_difference(split)}"


def _difference(split: SplitDifference) -> str:
    """Say how a split differs."""
    if split.is_empty:
        return f"the same {split.n_compared:,} rows"
    return (
        f"{split.n_only_first:,} rows only in the first, {split.n_only_second:,} only in the "
        f"second, {split.n_changed:,} changed, {split.n_relabeled:,} relabeled; features of "
        f"{split.n_compared:,} compared: largest difference {split.largest:.3g} "
        f"({split.largest_relative:.2g} of the largest)"
    )


def _storage(found: Inspection) -> str:
    """Say how features are stored."""
    storage = found.storage
    packed = f", gzip {storage.compression}" if storage.compression else ""
    where = f" in {found.n_shards:,} shards" if storage.sharded else ""
    return f"{storage.dtype}{packed}{where}"


def _table(pairs: Mapping[str, str]) -> Iterator[str]:
    """Yield pairs in two columns."""
    width = max(map(len, pairs))
    return (f"  {name:<{width}}  {text}" for name, text in pairs.items())


def _listed(texts: Sequence[str]) -> str:
    """Join texts, leaving out all but the first ten."""
    more = f", and {len(texts) - _N_SHOWN:,} more" if len(texts) > _N_SHOWN else ""
    return ", ".join(texts[:_N_SHOWN]) + more


def _size(n_bytes: int) -> str:
    """Return a number of bytes in MB."""
    return f"{n_bytes / 1e6:,.1f} MB"


def _plain(value: Any) -> Any:
    """Return a value made of what JSON knows."""
    if isinstance(value, HeadstartError):
        return {"error": str(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
