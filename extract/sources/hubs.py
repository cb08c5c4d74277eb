"""Sets of TensorFlow Datasets and of the Hugging Face hub, where those packages are installed.

Their images are taken as the files that they were stored as, so a set gives the same content
digests, and the same features, as the same files in a folder.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from data_cache.console import import_keras
from data_cache.errors import SourceError
from extract.sources.base import SourceOptions
from extract.sources.iterables import IterableSource, Sample
from extract.sources.listing import SPLIT_NAMES

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_LONGEST_REASON = 200


def open_hub(hub: str, name: str, options: SourceOptions) -> IterableSource:
    """List a set of a hub: ``tfds`` or ``hf``.

    Raises
    ------
    SourceError
        The package is not installed, the set cannot be had, or is not of labeled images.
    """
    open_set = _open_tfds if hub == "tfds" else _open_hf
    classes, samples = open_set(name)
    return IterableSource(f"{hub}:{name}", samples, options, classes)


def _open_tfds(name: str) -> tuple[list[str], Iterator[Sample]]:
    """Prepare a set of TensorFlow Datasets, with its images left encoded."""
    tfds = _import("tensorflow_datasets", "tensorflow-datasets", f"tfds:{name}")
    import_keras()  # or TensorFlow, which tfds imports when it needs it, would log to the terminal
    builder = _called(f"tfds:{name}", tfds.builder, name)
    features = builder.info.features
    image, label = _columns(f"tfds:{name}", features)
    _called(f"tfds:{name}", builder.download_and_prepare)
    decoders = {image: tfds.decode.SkipDecoding()}

    def samples() -> Iterator[Sample]:
        for split in _known(f"tfds:{name}", builder.info.splits):
            rows = tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
            for i, row in enumerate(rows):
                yield Sample(row[image], int(row[label]), split, f"{split}/{i:06d}")

    return list(features[label].names), samples()


def _open_hf(name: str) -> tuple[list[str] | None, Iterator[Sample]]:
    """Load a set of the Hugging Face hub, or of a folder, with its images left encoded."""
    datasets = _import("datasets", "datasets", f"hf:{name}")
    saved = (Path(name) / "dataset_dict.json").exists()
    load = datasets.load_from_disk if saved else datasets.load_dataset
    splits = _called(f"hf:{name}", load, name)
    features = next(iter(splits.values())).features
    image, label = _columns(f"hf:{name}", features)
    known = _known(f"hf:{name}", splits)

    def samples() -> Iterator[Sample]:
        for split in known:
            rows = splits[split].cast_column(image, datasets.Image(decode=False))
            for i, row in enumerate(rows):
                yield Sample(_hf_image(row[image]), row[label], split, f"{split}/{i:06d}")

    return getattr(features[label], "names", None), samples()


def _import(module: str, package: str, wanted: str) -> ModuleType:
    """Import an optional package; raise :class:`SourceError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceError(f"{wanted} needs a package: pip install {package} ({error})") from error


def _called(wanted: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call into a hub's package; whatever it raises (a network's error, its own) is ours then."""
    try:
        return function(*arguments)
    except Exception as error:
        words = textwrap.shorten(str(error), _LONGEST_REASON) or type(error).__name__
        raise SourceError(f"{wanted} cannot be had: {words}") from error


def _columns(wanted: str, features: Mapping[str, object]) -> tuple[str, str]:
    """Return the names of the columns of the images and of the labels."""
    image = next((name for name in _IMAGE_COLUMNS if name in features), None)
    label = next((name for name in _LABEL_COLUMNS if name in features), None)
    if image is None or label is None:
        raise SourceError(
            f"{wanted} has the columns {', '.join(features)}: {' or '.join(_IMAGE_COLUMNS)}, and "
            f"{' or '.join(_LABEL_COLUMNS)}, are expected"
        )
    return image, label


def _known(wanted: str, splits: Iterable[str]) -> list[str]:
    """Return the splits, all of which must be of a known name."""
    names = list(splits)
    unknown = [name for name in names if name.lower() not in SPLIT_NAMES]
    if unknown:
        raise SourceError(
            f"{wanted} has the splits {', '.join(names)}: train, validation and test are expected"
        )
    return names


def _hf_image(cell: Mapping[str, Any]) -> bytes | Path:
    """Return what an undecoded cell holds: a file's bytes, or its path."""
    return Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]
