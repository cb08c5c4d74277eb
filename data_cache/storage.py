"""The data set of features: how it is laid out, and the digests that prove its rows."""

from __future__ import annotations

from dataclasses import asdict

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.digests import as_content
from data_cache.errors import DataError
from data_cache.hdf5 import create_column, write_column
from data_cache.identity import read_attribute
from data_cache.layout import Storage, chunk_rows


def create_features(group: h5py.Group, shape: tuple[int, ...], storage: Storage) -> h5py.Dataset:
    """Create the (n, d) data set of features as ``storage`` says."""
    packing = {"compression": storage.compression, "shuffle": True} if storage.compression else {}
    return create_column(
        group,
        "features",
        shape,
        storage.dtype,
        chunk_rows(shape[1]),
        fillvalue=np.nan,
        **packing,
    )


def write_storage(file: h5py.File, storage: Storage) -> None:
    """Write how features are stored, one root attribute a field."""
    file.attrs.update(asdict(storage))


def read_storage(file: h5py.File) -> Storage:
    """Return how the features of a file are stored."""
    names = ("dtype", "compression", "sharded")
    dtype, compression, sharded = (read_attribute(file, name) for name in names)
    return Storage(str(dtype), int(compression), bool(sharded))


def as_stored(features: NDArray[np.float32], storage: Storage) -> NDArray[np.floating]:
    """Return features in the type that they are stored in.

    Raises
    ------
    DataError
        A value is NaN, infinite, or too large for float16.
    """
    with np.errstate(over="ignore"):
        stored = features.astype(storage.dtype, copy=False)
    if not np.isfinite(stored).all():
        value = features[~np.isfinite(stored)][0]
        raise DataError(
            f"a feature is {value}, which {storage.dtype} cannot hold as a number: check the "
            "weights and the engine" + (", or store float32" if np.isfinite(value) else "")
        )
    return stored


def write_block_digests(group: h5py.Group, digests: list[bytes], n_block_rows: int) -> None:
    """Write the digest of each block of rows, and how many rows make a block."""
    write_column(group, "block_digests", as_content(digests), max(1, len(digests)))
    group.attrs["block_rows"] = n_block_rows
