"""What runs in a worker process of this machine: chunks of images in, their features out.

It speaks over a socket: it is sent the :class:`Stages`, answers with the features of :func:`probe`,
and then answers each :class:`~extract.workers.images.TaskImages` with a
:class:`~extract.pipeline.Worked`. It ends when the other side is gone, however that ended.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from extract.decode import DecodeOptions
from extract.engines import Engine
from extract.pipeline import Pipeline, Profile, Worked
from extract.preprocess import Preprocessing
from extract.workers.images import Opening, Read, ReadableImages, TaskImages


@dataclass(frozen=True)
class Stages:
    """What images go through in a worker; see :class:`extract.pipeline.Pipeline`.

    Attributes
    ----------
    opening : how the worker reads the source
    engine : one that is loaded again where it is unpickled
    """

    opening: Opening
    decoding: DecodeOptions
    preprocessing: Preprocessing
    engine: Engine


def probe(image_size: int) -> NDArray[np.float32]:
    """Return two scaled images, (2, S, S, 3) in [-1, 1): noise, the same whenever it is asked."""
    noise = np.random.default_rng(0).random((2, image_size, image_size, 3), np.float32)
    return 2 * noise - 1


def main(descriptor: int) -> None:
    """Be a worker; ``descriptor`` is that of the socket."""
    serve(Connection(descriptor))


def serve(connection: Connection) -> None:
    """Answer until the other side is gone; a failure is told, as text, and ends this side."""
    try:
        _answer(connection)
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 (the other side does the work, and meets it there)
        with suppress(OSError):
            connection.send(f"{type(error).__name__}: {error}")


def _answer(connection: Connection) -> None:
    """Load what images go through, then take one chunk after another through it."""
    stages: Stages = connection.recv()
    read = stages.opening.open()
    connection.send(stages.engine(probe(stages.preprocessing.image_size)))
    while True:
        connection.send(_worked(stages, read, connection.recv()))


def _worked(stages: Stages, read: Read, images: TaskImages) -> Worked:
    """Take a chunk through all stages."""
    profile = Profile()
    pipeline = Pipeline(
        ReadableImages(images, read),
        stages.decoding,
        stages.preprocessing,
        stages.engine,
        n_workers=1,
        profile=profile,
    )
    return Worked(pipeline.extract_chunk(list(images.positions())), dict(profile.seconds))
