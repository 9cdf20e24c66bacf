"""What a router spends on each shard of a fan-out: processor time of the calls and of merging, by number of shards.

The shards are one process that answers every call with the same hits, so that nothing is measured but the router's own
work: choosing a replica, making the request, reading the answer, and merging the answers of all shards.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import uvloop

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.remote.channels import Channels, Endpoint
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import SearchStream, ShardRoute, ShardStub, search_stream
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.shards.merge import merge
from likewise.shards.protocols import F32, SearchOptions, ShardHits
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import search_service_pb2


def gallery(dim: int) -> GallerySpec:
    """What the calls are about."""
    return GallerySpec(name="measured", gallery_id="0" * 32, spaces=(SpaceSpec("default", dim, f"vectors:{dim}"),))


class CannedShard:
    """Gives every query the same hits."""

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """See `ShardSearch.search`."""
        k = options.k
        return ShardHits(
            ids=[f"item-{number:09d}" for number in range(k)],
            scores=np.linspace(1, 0, k, dtype=np.float32),
            offsets=np.array([0, k]),
            attributes=None,
            vectors=None,
            plan=search_service_pb2.ShardPlan(live=1),
            version=1,
            queue_us=0,
            search_us=0,
        )


def serve(dim: int, address: "Connection[str, str]") -> None:
    """Serve the canned shard until the process is ended; its address is sent first."""

    async def run() -> None:
        endpoint = Endpoint("127.0.0.1")
        shard: Any = CannedShard()
        servicer = ShardServicer(shard, shard, spec=gallery(dim), number=0)
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)
        address.send(await endpoint.start())
        await asyncio.Event().wait()

    uvloop.run(run())


async def measure(address: str, shards: int, *, dim: int, k: int, seconds: float, calls: bool) -> dict[str, float]:
    """Search again and again for so many seconds; milliseconds of a search."""
    channels = Channels()

    def connect(name: str) -> ShardStub:
        route = ShardRoute("a shard", channels, shard_service_pb2_grpc.ShardServiceStub, addresses=[name])
        stream = None if calls else search_stream(channels, name)
        if stream is not None:
            streams.append(stream)
        return ShardStub(route, gallery_id=gallery(dim).gallery_id, shard=0, stream=stream)

    streams: list[SearchStream] = []
    sets = [ReplicaSet(f"shard {number}", connect, [address]) for number in range(shards)]
    query = np.ones((1, dim), dtype=np.float32)
    options = SearchOptions(space="default", k=k)

    async def search() -> float:
        parts = await asyncio.gather(*(one.search(query, options) for one in sets))
        began = time.process_time()
        merge(parts, k)
        return time.process_time() - began

    await search()
    while not all(stream.ready for stream in streams):
        await search()
    wall, processor, merging, searches = time.perf_counter(), time.process_time(), 0.0, 0
    while searches < 3 or time.perf_counter() - wall < seconds:
        merging += await search()
        searches += 1
    processor = (time.process_time() - processor) / searches
    wall = (time.perf_counter() - wall) / searches
    for stream in streams:
        await stream.close()
    await channels.close()
    return {
        "search_ms": round(wall * 1e3, 3),
        "router_cpu_ms": round(processor * 1e3, 3),
        "router_cpu_ms_shard": round(processor / shards * 1e3, 3),
        "merge_cpu_ms": round(merging / searches * 1e3, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON line for each number of shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 10, 100, 1_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each line")
    parser.add_argument(
        "--calls", action="store_true", help="a gRPC call for each search instead of a message of a stream"
    )
    options = parser.parse_args(arguments)
    if min(options.shards) < 1 or options.dim < 1 or options.k < 1:
        parser.error("--shards, --dim and --k must be at least 1")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(options.dim, theirs), daemon=True)
    server.start()
    try:
        address = ours.recv()
        for shards in options.shards:
            figures = uvloop.run(
                measure(address, shards, dim=options.dim, k=options.k, seconds=options.seconds, calls=options.calls)
            )
            print(json.dumps({"shards": shards, "dim": options.dim, "k": options.k, **figures}), flush=True)
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
