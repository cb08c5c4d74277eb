"""Identity: what was done to an image to make its feature row.

A row of a cache is keyed by two digests: ``content``, the SHA-256 of what went in, and
:meth:`Recipe.digest`, of what was done to it. Nothing else takes part: not the path, the time, the
machine, the batch size or the order of arguments, so copying, moving or renaming recomputes
nothing. :class:`Provenance` is what a reader wants to know besides; it is never part of the
identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields


@dataclass(frozen=True)
class Recipe:
    """Everything that changes a feature row, besides the image itself.

    Attributes
    ----------
    backbone : name in the registry of backbones, such as ``mobilenet_v2``
    weights_digest : SHA-256 (64 hex digits) of the backbone's weights in canonical order
    feature_layer : the layer whose output is kept; ``avg_pool`` is the global average pooling
        of the last feature map, any other name the whole output of that layer, flattened in C
        order; names with ``+`` between them give one output after another
    image_size : side of the square input, in pixels
    resize_mode : how an image becomes square: ``stretch``, ``crop`` or ``pad``
    decoding : name, version and options of the decoder, such as ``rgb8/1 alpha=white``;
        behind it the random view, if it is one, such as ``augment/1 seed=0 view=3``
    preprocessing : name and version of the pixel scaling, such as ``mobilenet_v2/1``
    numeric_class : engines whose results agree with the reference within 1e-4 share one class,
        ``float32``
    """

    backbone: str
    weights_digest: str
    image_size: int
    preprocessing: str
    decoding: str
    resize_mode: str = "stretch"
    feature_layer: str = "avg_pool"
    numeric_class: str = "float32"

    def digest(self) -> str:
        """Return the SHA-256 (64 hex digits) of the recipe as canonical JSON (sorted keys)."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: Recipe) -> tuple[str, ...]:
        """Say in words where ``other`` differs, one phrase a field: ``image size 160, was 96``."""
        return tuple(
            f"{one.name.replace('_', ' ')} {_brief(getattr(other, one.name))}, "
            f"was {_brief(getattr(self, one.name))}"
            for one in fields(self)
            if getattr(self, one.name) != getattr(other, one.name)
        )


@dataclass(frozen=True)
class Provenance:
    """Where the features came from: for people to read, never compared.

    ``weights`` says in words which weights were used, ``weights_sha256`` is the SHA-256 of their
    file (empty where there is none), ``created`` is the time in ISO 8601, UTC, ``versions`` maps
    package names to versions, ``backbone_parameters`` counts the backbone's weights (0: unknown),
    ``weights_path`` is where the weights' file was, a hint that is never trusted (empty: no file).
    """

    source: str
    weights: str
    weights_sha256: str
    engine: str
    created: str
    versions: Mapping[str, str] = field(default_factory=dict)
    backbone_parameters: int = 0
    weights_path: str = ""


def _brief(value: object) -> str:
    """Shorten a digest to its first 12 digits; leave anything else as it is."""
    text = str(value)
    return text[:12] + "…" if len(text) == hashlib.sha256().digest_size * 2 else text
