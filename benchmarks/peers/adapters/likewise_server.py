"""Likewise's own server, embedded or with Ray, by a bare grpc.aio stub with prepared messages or through its SDK."""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from importlib import metadata
from typing import Any, Final

import grpc
import grpc.aio
from benchmarks.peers.driver.protocol import AsyncCall, OnLoop, Question, Rows, Setting

from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark import search
from likewise.cli.benchmark.dataset import Dataset
from likewise.cli.benchmark.echo import SEARCH_PATH
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import AsyncClient, Client, Gallery
from likewise.client.filters import F, Filter
from likewise.v1 import search_service_pb2 as pb
from likewise.wire import MAX_MESSAGE_BYTES

_INDEX: Final = "hnsw"


class LikewiseServer:
    """`likewise serve` with one gallery.

    Options: mode, shards, m, ef_construction, client ("bare" or "sdk"), transport ("socket" or "tcp").
    """

    def __init__(self, setting: Setting) -> None:
        self._options = dict(setting.options)
        self._stack = ExitStack()
        path = setting.folder / "likewise.sock"
        arguments = [*search.serve_arguments(self._options["mode"], setting.threads), "--socket", str(path)]
        server = ServerProcess(
            serve_command(setting.folder / "store", arguments=arguments), log_path=setting.folder / "server.log"
        )
        port = self._stack.enter_context(server).address
        self.address = f"unix:{path}" if self._options["transport"] == "socket" else port
        self._client = self._stack.enter_context(Client(self.address))
        self._loaded = False

    def versions(self) -> dict[str, str]:
        """Of the server's main parts."""
        return {name: metadata.version(name) for name in ("likewise", "grpcio", "faiss-cpu")}

    def load(self, rows: Rows) -> None:
        """Upsert everything through the SDK and wait for the sealed index."""
        galleries.wait_sealed(self.store(rows), len(rows.base), index=_INDEX)

    def store(self, rows: Rows) -> Gallery:
        """Upsert everything, in place of what was there; it can be found then, if not in an index."""
        if self._loaded:
            self._client.delete_gallery(search.GALLERY)
        spec = search.index_spec(_INDEX, m=self._options["m"], ef_construction=self._options["ef_construction"])
        shards = self._options["shards"]
        gallery = galleries.create(self._client, search.GALLERY, rows.base.shape[1], index=spec, shards=shards)
        self._loaded = True
        galleries.fill(gallery, Dataset(rows.base, rows.base[:1], rows.share, rows.cluster_share, seed=0))
        return gallery

    def prepare(self, question: Question) -> OnLoop:
        """Messages beforehand; with the SDK, vectors as a user has them."""
        if self._options["client"] == "sdk":
            return OnLoop(lambda: sdk_calls(self.address, question))
        return OnLoop(lambda: stub_calls(self.address, requests_of(question)))

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()


def adapter(setting: Setting) -> LikewiseServer:
    """Start the server."""
    return LikewiseServer(setting)


def requests_of(question: Question) -> list[pb.SearchRequest]:
    """The message of each query."""
    plan = search.Plan(k=question.k, ef=question.params["ef"], index=_INDEX)
    return [search.search_request(plan, query, _where(question)) for query in question.queries]


@asynccontextmanager
async def stub_calls(address: str, requests: Sequence[pb.SearchRequest]) -> AsyncIterator[AsyncCall]:
    """A bare method on one channel, which all callers share."""
    limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("receive", "send")]
    async with grpc.aio.insecure_channel(address, options=limits) as channel:
        method: Any = channel.unary_unary(
            SEARCH_PATH,
            request_serializer=pb.SearchRequest.SerializeToString,
            response_deserializer=pb.SearchResponse.FromString,
        )

        async def call(which: int) -> list[str]:
            response: pb.SearchResponse = await method(requests[which], timeout=60)
            return list(response.hits.ids)

        yield call


@asynccontextmanager
async def sdk_calls(address: str, question: Question) -> AsyncIterator[AsyncCall]:
    """`AsyncClient`, one call a query."""
    where, ef = _where(question), question.params["ef"]
    async with AsyncClient(address) as client:
        gallery = client.gallery(search.GALLERY)

        async def call(which: int) -> list[str]:
            hits = await gallery.search(vector=question.queries[which], k=question.k, where=where, ef=ef)
            return list(hits.ids)

        yield call


def _where(question: Question) -> Filter | None:
    return None if question.below is None else F["share"] < question.below
