"""The description of an exported model, sealed: digests that tell damage and edits.

The description is JSON. Under ``content`` it has the SHA-256 of every other part of the model, and
under ``sha256`` its own, so a model whose weights, graph or class names were changed is noticed
before it is loaded. It is no signature: whoever forges every part can forge the digests too. That
nothing in a file can run code is seen to by :mod:`classify.export.safety`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_cache.errors import ModelError

FORMAT, FORMAT_VERSION = "headstart-model", 1
KEY = "headstart"
"""Under which the JSON is kept: ``headstart.json`` where the format holds files."""

JSON_NAME = f"{KEY}.json"
_MENDING = "export it again"


def seal(said: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """Return the JSON of a description, with the digests of the model's parts and its own."""
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, **said, "content": dict(content)}
    whole["sha256"] = _digest(whole)
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def unseal(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return what :func:`seal` was given, and ``content``, after holding it against its digest.

    Raises
    ------
    ModelError
        It is no description of this program, of a version that is not known, or was changed.
    """
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} has a damaged description: {_MENDING}") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise foreign(path)
    if said.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} is a model of format version {said.get('format_version')}; this program reads "
            f"version {FORMAT_VERSION}: use the program that wrote it"
        )
    if said.pop("sha256", "") != _digest(said) or not isinstance(said.get("content"), dict):
        raise ModelError(f"{path} has a description that was changed after the export: {_MENDING}")
    return said


def check_content(path: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise :class:`ModelError` unless a model's parts have the digests of its description."""
    other = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    if other:
        raise ModelError(
            f"{path}: {min(other)} is not what was exported (its SHA-256 differs): {_MENDING}"
        )


def foreign(path: Path) -> ModelError:
    """Return the error for a model that this program did not export."""
    return ModelError(
        f"{path} was not written by export-model: expected a run folder, or a .keras, .onnx or "
        ".tflite file or a SavedModel folder that export-model wrote"
    )


def digest(data: bytes) -> str:
    """Return the SHA-256 (64 hex digits) of bytes."""
    return hashlib.sha256(data).hexdigest()


def _digest(said: Mapping[str, Any]) -> str:
    """Return the digest of a description as canonical JSON: sorted keys, no spaces."""
    return digest(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())
