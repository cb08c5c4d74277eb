"""Write a cache as files of other programs: NumPy's, a table of text, a table for data frames."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.cache import FeatureCache
from data_cache.errors import CacheError
from data_cache.files import refuse_existing, whole_file
from data_cache.hdf5 import encode_texts

_BATCH_ROWS = 4096


def export(path: Path, output: Path, *, overwrite: bool = False) -> int:
    """Write a whole cache as ``.npz``, ``.csv`` or ``.parquet``, as ``output`` ends.

    Returns the number of rows. ``.npz`` holds ``train_features`` (n, d) float32, ``train_labels``
    (n,) int64, ``train_ids`` and ``train_groups`` (n,) UTF-8 bytes, and ``classes``; the others
    hold a table with the columns split, id, label (the name), group and the features. Features
    are streamed.

    Raises
    ------
    CacheError
        ``output`` ends otherwise, or pyarrow, which parquet needs, is not installed.
    OutputExistsError
        ``output`` exists and ``overwrite`` is false.
    OutputFullError
        There is no room left for ``output``.
    """
    writers: Mapping[str, Callable[[FeatureCache, Path], None]] = {
        ".npz": _write_npz,
        ".csv": _write_csv,
        ".parquet": _write_parquet,
    }
    if output.suffix not in writers:
        raise CacheError(f"{output} ends in none of {', '.join(writers)}: name it by its format")
    refuse_existing(output, overwrite=overwrite)
    with FeatureCache.open(path) as cache, whole_file(output) as temporary:
        writers[output.suffix](cache, temporary)
        return sum(map(cache.n_rows, cache.split_names))


def _write_npz(cache: FeatureCache, path: Path) -> None:
    """Write arrays into an uncompressed zip, the features block by block."""
    with zipfile.ZipFile(path, "w") as archive:
        _add_array(archive, "classes", [encode_texts(cache.classes)])
        for split in cache.split_names:
            rows = cache.rows(split)
            shape = (len(rows), cache.n_features)
            blocks = (block for block, _ in cache.blocks(split))
            _add_array(archive, f"{split}_features", blocks, shape)
            _add_array(archive, f"{split}_labels", [rows.labels])
            _add_array(archive, f"{split}_ids", [rows.ids])
            if rows.groups is not None:
                _add_array(archive, f"{split}_groups", [rows.groups])


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    blocks: Sequence[NDArray[Any]] | Iterator[NDArray[Any]],
    shape: tuple[int, ...] | None = None,
) -> None:
    """Add an array in NumPy's format to a zip; ``shape`` is that of all float32 blocks together."""
    dtype = np.dtype(np.float32)
    if shape is None:
        blocks = list(blocks)
        shape, dtype = blocks[0].shape, np.dtype(blocks[0].dtype.str)
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, described)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype).tobytes())


def _write_csv(cache: FeatureCache, path: Path) -> None:
    """Write a table; nine digits give back the same float32."""
    digits = max(4, len(str(cache.n_features - 1)))
    names = [f"f{k:0{digits}}" for k in range(cache.n_features)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "id", "label", "group", *names])
        for table in _tables(cache):
            columns = (table.ids, table.labels, table.groups, table.features.tolist())
            for name, label, group, features in zip(*columns, strict=True):
                numbers = (f"{value:.9g}" for value in features)
                writer.writerow([table.split, name, label, group, *numbers])


def _write_parquet(cache: FeatureCache, path: Path) -> None:
    """Write a table whose column ``features`` is a list of fixed size."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise CacheError(
            "parquet needs pyarrow, which is not installed: `pip install pyarrow`, or export "
            ".npz or .csv"
        ) from error
    texts = [(name, pa.string()) for name in ("split", "id", "label", "group")]
    schema = pa.schema([*texts, ("features", pa.list_(pa.float32(), cache.n_features))])
    with parquet.ParquetWriter(path, schema) as writer:
        for table in _tables(cache):
            flat = pa.array(table.features.reshape(-1))
            columns: list[Any] = [
                [table.split] * len(table.ids),
                table.ids,
                table.labels,
                table.groups,
                pa.FixedSizeListArray.from_arrays(flat, cache.n_features),
            ]
            writer.write_table(pa.table(columns, schema=schema))


@dataclass(frozen=True)
class _Table:
    """Some rows of a split, in words."""

    split: str
    ids: list[str]
    labels: list[str]
    groups: list[str]
    features: NDArray[np.float32]


def _tables(cache: FeatureCache) -> Iterator[_Table]:
    """Yield every split in blocks of rows."""
    for split in cache.split_names:
        for features, part in cache.blocks(split, _BATCH_ROWS):
            rows = cache.rows(split, part)
            groups = [b""] * len(rows) if rows.groups is None else rows.groups.tolist()
            yield _Table(
                split,
                [name.decode() for name in rows.ids.tolist()],
                [cache.classes[label] for label in rows.labels],
                [group.decode() for group in groups],
                features,
            )
