"""Libraries that run backbones on a CPU faster than TensorFlow does; each is an optional extra."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import EngineError

Batch = NDArray[np.float32]
"""(n, S, S, 3) scaled pixels, as :func:`extract.preprocess.preprocess` returns them."""


@dataclass(frozen=True)
class Runtime:
    """A library: the engine it is, what ``pip`` calls it, and what ``import`` does."""

    engine: str
    distribution: str
    module: str

    @property
    def is_installed(self) -> bool:
        """Tell whether it is installed; whether it can be imported shows when an engine starts."""
        return importlib.util.find_spec(self.module) is not None

    def expect(self) -> None:
        """Raise :class:`EngineError` where it is not installed."""
        if not self.is_installed:
            raise EngineError(
                f"the engine {self.engine} needs {self.distribution}: pip install '.[fast]'"
            )
