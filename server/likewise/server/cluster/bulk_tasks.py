"""Work in many independent units on a Ray cluster: Ray Data deals them out and repeats what was lost with a node."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray

from likewise.server.cluster.bootstrap import LOCAL, ClusterError, join, start_local

NAMESPACE: Final = "likewise-ingest"


@dataclass(frozen=True, slots=True)
class Worker:
    """What does the work.

    Attributes:
        type: A class whose objects are called with a unit and return its outcome, both flat mappings; one object a
            process.
        arguments: Of its constructor; picklable.
    """

    type: Callable[..., Any]
    arguments: tuple[Any, ...]


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster inside the block: "local" for one that ends with it, else a running one.

    Raises:
        ClusterError: If there is none at the address, or Ray Data is not installed.
    """
    if ray.is_initialized():
        yield
        return
    if address == LOCAL:
        start_local(NAMESPACE)
    else:
        join(address, NAMESPACE)
    try:
        yield
    finally:
        ray.shutdown()


def run_units(worker: Worker, units: Sequence[Mapping[str, Any]], *, workers: int | None) -> Iterator[dict[str, Any]]:
    """Outcomes as they come, in no order.

    Args:
        worker: See `Worker`.
        units: What each call is given.
        workers: Processes; None for as many as the cluster has CPUs.

    Raises:
        ClusterError: If Ray Data is not installed.
        Exception: What a worker raised; units that had not begun are given up.
    """
    try:
        from ray import data
    except ImportError as error:
        raise ClusterError(f"bulk ingest needs Ray Data (pip install 'likewise[cluster]'): {error}") from error
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    source = data.from_items(list(units), override_num_blocks=len(units))
    outcomes = source.map(
        worker.type,
        fn_constructor_args=worker.arguments,
        # A fraction: the servers of the same cluster have reserved some of every CPU.
        num_cpus=0.5,
        compute=data.ActorPoolStrategy(size=max(1, min(most, len(units)))),
    )
    yield from outcomes.iter_rows()
