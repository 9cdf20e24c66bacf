"""Work in many independent units on a Ray cluster: Ray Data deals them out and repeats what was lost with a node."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import ray

from likewise.server.cluster.bootstrap import LOCAL, ClusterError, join, start_local

NAMESPACE: Final = "likewise-ingest"


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


def run_units(
    work: Callable[[dict[str, Any]], dict[str, Any]], units: Sequence[Mapping[str, Any]], *, workers: int | None
) -> Iterator[dict[str, Any]]:
    """Outcomes as they come, in no order.

    Args:
        work: Unit to outcome, both flat mappings; picklable. Called in processes that go on to the next unit.
        units: What each call is given.
        workers: Calls at a time; None for as many as the cluster has CPUs.

    Raises:
        ClusterError: If Ray Data is not installed.
        Exception: What a call raised; units that had not begun are given up.
    """
    try:
        from ray import data
    except ImportError as error:
        raise ClusterError(f"bulk ingest needs Ray Data (pip install 'likewise[cluster]'): {error}") from error
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    source = data.from_items(list(units), override_num_blocks=len(units))
    # Half a CPU each: the servers of the same cluster have reserved some of every CPU.
    outcomes = source.map(work, num_cpus=0.5, concurrency=max(1, min(most, len(units))))
    yield from outcomes.iter_rows()
