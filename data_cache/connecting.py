"""From what the user writes after ``--cluster`` to a client of Dask.

``local:N`` starts N worker processes here. They are reached on 127.0.0.1 only, serve no pages, keep
their files in a temporary folder, and end with this process, however it ends.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from data_cache.cores import n_cores
from data_cache.errors import ClusterError, ParameterError

_LOCAL = re.compile(r"local:(\d{1,4})")
_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+")
_CONNECT_SECONDS = 15
_ALLOWED_LOSSES = 10


def n_local_workers(text: str) -> int | None:
    """Return N of ``local:N``, or None for the address of a scheduler.

    Raises
    ------
    ParameterError
        It is neither.
    """
    found = _LOCAL.fullmatch(text)
    if found and int(found[1]):
        return int(found[1])
    if not _ADDRESS.fullmatch(text):
        raise ParameterError(
            f"cluster {text!r}: the address of a Dask scheduler, such as tcp://host:8786, or "
            "local:N, for N worker processes here, is expected"
        )
    return None


def n_local_threads(n_workers: int) -> int:
    """Return how many threads each of N worker processes here gets: all cores, shared out."""
    return max(1, n_cores() // n_workers)


@contextmanager
def connected(text: str) -> Iterator[Any]:
    """Yield a ``distributed.Client`` of the cluster that ``--cluster`` names.

    Raises
    ------
    ParameterError
        ``text`` names no cluster.
    ClusterError
        ``distributed`` is not installed, or no scheduler answers.
    """
    n_workers = n_local_workers(text)
    if find_spec("distributed") is None:
        raise ClusterError("--cluster needs Dask: pip install 'headstart[cluster]'")
    with _remote(text) if n_workers is None else _local(n_workers) as client:
        yield client


@contextmanager
def fits_on(text: str) -> Iterator[None]:
    """Have scikit-learn's parallel fits in the body run on a cluster, by joblib's Dask backend.

    Whatever takes ``n_jobs``, such as ``GridSearchCV`` over a probe, sends its fits there. Raises
    as :func:`connected` does.
    """
    import joblib

    with connected(text) as client, joblib.parallel_config("dask", client=client):
        yield


@contextmanager
def _remote(address: str) -> Iterator[Any]:
    """Connect to a scheduler that runs already."""
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address}: start one with `dask scheduler`, and workers "
            f"with `dask worker {address}`"
        ) from error
    with client:
        yield client


@contextmanager
def _local(n_workers: int) -> Iterator[Any]:
    """Start worker processes here, and stop them in the end."""
    import dask
    from distributed import Client, SpecCluster

    settings = {"distributed.scheduler.allowed-failures": _ALLOWED_LOSSES}
    with (
        tempfile.TemporaryDirectory(prefix="headstart-") as folder,
        dask.config.set(settings),
        SpecCluster(
            *_specification(n_workers, folder), silence_logs=logging.CRITICAL, name="headstart"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(n_workers)
        yield client


def _specification(n_workers: int, folder: str) -> tuple[dict[int, Any], dict[str, Any]]:
    """Return what Dask is to start: the workers, and the scheduler."""
    from distributed import Nanny

    from data_cache.portless import PortlessScheduler, PortlessWorker

    options = {
        "nthreads": n_local_threads(n_workers),
        "memory_limit": 0,
        "host": "127.0.0.1",
        "local_directory": folder,
        "worker_class": PortlessWorker,
        "silence_logs": logging.CRITICAL,
    }
    scheduler = {"cls": PortlessScheduler, "options": {"host": "127.0.0.1", "port": 0}}
    return {k: {"cls": Nanny, "options": options} for k in range(n_workers)}, scheduler
