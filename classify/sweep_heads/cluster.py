"""The heads of a sweep trained on the workers of a Dask cluster.

Each task trains some of the heads, in one thread; the features are sent to every worker once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from classify.heads.batches import TrainingData
from classify.heads.many import TrainedHead, train_many_heads
from classify.heads.spec import HeadSpec
from data_cache.connecting import connected
from data_cache.console import Advance
from data_cache.errors import ClusterError, HeadstartError

_N_RETRIES = 5
_TASKS_PER_THREAD = 2

Score = TypeVar("Score")


def train_on_cluster(
    heads: Sequence[HeadSpec],
    data: TrainingData,
    cluster: str,
    score: Callable[[TrainedHead, TrainingData], Score],
    advance: Advance,
) -> Iterator[tuple[int, Score]]:
    """Train heads on a cluster; yield the position of each in ``heads`` and its score.

    Heads come in the order in which they are done. ``score`` runs in the workers, so that logits
    stay there; it has to be a function of a module. ``advance`` is told of epochs.

    Raises
    ------
    ClusterError
        The cluster cannot be reached, or a task failed in an unforeseen way or ended its workers.
    """
    with connected(cluster) as client:
        from distributed import as_completed

        n_tasks = max(1, sum(client.nthreads().values())) * _TASKS_PER_THREAD
        everywhere = client.scatter(data, broadcast=True, hash=False)
        futures = [
            client.submit(
                _train, heads[k::n_tasks], everywhere, score, pure=False, retries=_N_RETRIES
            )
            for k in range(min(n_tasks, len(heads)))
        ]
        places = {future.key: k for k, future in enumerate(futures)}
        for future in as_completed(futures, loop=client.loop):
            first = places[future.key]
            scores: list[tuple[int, Score]] = _result(future)
            for position, found in scores:
                yield first + position * n_tasks, found
            advance(sum(head.epochs for head in heads[first::n_tasks]))


def _train(
    heads: Sequence[HeadSpec],
    data: TrainingData,
    score: Callable[[TrainedHead, TrainingData], Score],
) -> list[tuple[int, Score]]:
    """Train some heads in a worker; return the score of each, with its position among them."""
    trained = train_many_heads(heads, data, n_threads=1)
    return [(position, score(head, data)) for position, head in trained]


def _result(future: object) -> list[tuple[int, Score]]:
    """Return what a task found; raise the project's own errors as they are."""
    try:
        found: list[tuple[int, Score]] = future.result()  # type: ignore[attr-defined]
    except HeadstartError:
        raise
    except Exception as error:  # whatever a worker raises, such as that it lacks this package
        raise ClusterError(
            f"training on the cluster failed ({type(error).__name__}: {error}): see that all "
            "workers have the same headstart, Python and Dask, and memory enough, and run again"
        ) from error
    return found
