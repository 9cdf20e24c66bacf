"""The search pipeline: resolve → compose → fan out → merge → cut → reply.

A search is prepared (`prepare`, everything up to its query vector) and then answered. Prepared searches that share
gallery, options and policy are answered by one call to each shard, so that a batch costs one scan instead of many;
searches of many callers are put together for that (`search_groups`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, TypeVar

import numpy as np

from likewise import wire
from likewise.server import access_log, answer, failures, validate
from likewise.server.answer import Answer
from likewise.server.compose import Composed
from likewise.server.errors import ServiceError
from likewise.server.fan_out import FanOut, LiveCounts, fan_out
from likewise.server.kept_encodings import KeptEncodings
from likewise.server.metrics import Metrics
from likewise.server.prepare import Asked, Preparer
from likewise.server.prepared import Prepared, exclusions
from likewise.server.protocols import Galleries, Models
from likewise.server.recent_queries import RecentQueries
from likewise.server.respond import respond
from likewise.server.search_groups import SearchGroups
from likewise.server.validate_search import question
from likewise.server.version_tokens import VersionTokens
from likewise.shards.protocols import I64
from likewise.v1 import search_service_pb2 as pb

T = TypeVar("T")

_OFF_LOOP_CELLS: Final = 4_096
"""Hits times columns from which merging and packing leaves the event loop: about a millisecond of work."""


class Searcher:
    """Searches the galleries with the models; holds no state of its own but row counts.

    Args:
        models: Where galleries' encoders come from.
        galleries: What can be searched.
        metrics: Where plans and stages are counted.
        executor: Runs hashing, merging and packing of large answers.
        recent: Where some of the queries are kept, to try the next version of a model on; None to keep none.
        tokens: What is known of galleries' versions; by default nothing yet.
        kept: How many encodings of query texts and pictures are kept for each encoder.
    """

    def __init__(
        self,
        *,
        models: Models,
        galleries: Galleries,
        metrics: Metrics,
        executor: Executor,
        recent: RecentQueries | None = None,
        tokens: VersionTokens | None = None,
        kept: int = 0,
    ) -> None:
        self._galleries = galleries
        self._metrics = metrics
        self._executor = executor
        self._preparer = Preparer(
            models=models,
            galleries=galleries,
            executor=executor,
            recent=recent,
            tokens=tokens or VersionTokens(),
            encode=KeptEncodings(kept, note=metrics.query_inputs).encode,
        )
        self._live = LiveCounts()
        self._groups = SearchGroups(self.answer)

    async def search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        """Answer one search."""
        prepared = await self._preparer.prepare(request)
        ((response, _),) = await self._groups.answer((prepared,))
        _note(response)
        return response

    async def search_vectors(
        self, request: pb.SearchVectorsRequest, reply: pb.SearchVectorsResponse
    ) -> pb.SearchVectorsResponse:
        """Answer the same search for each row of a matrix, as one: in `reply`, an empty message, which is returned."""
        rows = await self._preparer.prepare_rows(request)
        offsets = np.zeros(rows.rows + 1, dtype=np.int64)
        if rows.prepared is not None:
            ((response, found),) = await self._groups.answer((rows.prepared,))
            offsets = _offsets_of_all(found, rows.rows, [row for row, _ in rows.errors]) if rows.errors else found
            reply.answer.CopyFrom(response)
            _note(response)
        reply.offsets = wire.pack(offsets, "<i4")
        for row, error in rows.errors:
            reply.errors.add(row=row, error=failures.status_of(error, what="a search"))
        access_log.current().rows = rows.rows
        return reply

    async def prepare(self, asked: Asked) -> Prepared:
        """Make the query vector of a search that `begin_all` has checked."""
        return await self._preparer.finish(asked)

    def begin_all(self, requests: Sequence[pb.SearchRequest]) -> list[Prepared | Asked | Exception]:
        """Check searches and prepare those that nothing has to be awaited for; in order, errors in their places."""
        return self._preparer.begin_all(requests)

    async def answer_all(self, searches: Sequence[Prepared]) -> list[pb.SearchResponse]:
        """Answer searches of one caller that have the same `key`, in order, with those of others that come meanwhile.

        Args:
            searches: At least one, any number.
        """
        return [one.response for one in await self._groups.answer(searches)]

    async def answer(self, searches: Sequence[Prepared], searched: Callable[[], None] = lambda: None) -> list[Answer]:
        """Answer searches that have the same `key` with one call to each shard.

        Args:
            searches: At least one.
            searched: Called when the shards have done their part, before the answer is put together.
        """
        first, asked = searches[0], time.perf_counter()
        queries = first.queries
        if len(searches) > 1:
            # `np.stack` would take ten times as long over the rows of a batch.
            queries = np.concatenate([search.queries for search in searches])
        options = first.options
        if left_out := exclusions(searches):
            options = options._replace(exclusions=left_out)
        try:
            found = await fan_out(first.handle, queries, options, partial=first.form.partial, live=self._live)
        except ServiceError as error:
            if "shard" in error.metadata:
                self._metrics.shard_requests.labels(error.reason).inc(len(queries))
            raise
        searched()
        cells = len(queries) * first.options.k * (1 + len(first.options.attributes) + first.options.vectors)
        started = time.perf_counter()
        answers = await self._run(
            cells > _OFF_LOOP_CELLS,
            lambda: answer.pack(
                found.answers,
                [answer.Part(search.size, search.form.cut) for search in searches],
                k=first.options.k,
                spec=first.handle.spec,
                space=first.space.digest,
            ),
        )
        merge_us = round((time.perf_counter() - started) * 1e6)
        respond(searches, found, answers, merge_us, asked)
        # Nobody has to wait for what is counted of it.
        asyncio.get_running_loop().call_soon(self._count, searches, found, answers)
        return answers

    def _count(self, searches: Sequence[Prepared], found: FanOut, answers: Sequence[Answer]) -> None:
        self._metrics.searches([one.response for one in answers], [search.size for search in searches])
        if searches[0].options.filter and (live := found.coverage.items_searched):
            allowed = sum(shard.plan.allowed for shard in found.answers.values())
            self._metrics.filter_selectivity.observe(allowed / live, sum(search.size for search in searches))

    async def compose(self, request: pb.ComposeRequest) -> pb.ComposeResponse:
        """The query vector alone."""
        started = time.perf_counter()
        handle = self._galleries.get(validate.required(request.gallery, "gallery"))
        access_log.current().gallery = handle.spec.name
        asked = question(request.reference, request.conditions, request.space, handle.spec)
        resolved = await self._preparer.resolve(asked, handle, min_version=0)
        composed = await self._preparer.compose(asked, resolved.reference, handle.spec)
        timing = _timing(composed)
        timing.total_us = round((time.perf_counter() - started) * 1e6)
        return pb.ComposeResponse(
            vector=answer.vector_of(composed.vector, asked.space.digest),
            composition=composed.composition,
            models=composed.models,
            timing=timing,
            warnings=composed.warnings,
        )

    async def _run(self, large: bool, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work) if large else work()


def _offsets_of_all(found: I64, count: int, wrong: list[int]) -> I64:
    """(count + 1,) offsets of all rows of a matrix, from those of the rows that were searched for."""
    counts, searched = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
    searched[wrong] = False
    counts[searched] = np.diff(found)
    return np.concatenate(([0], np.cumsum(counts)))


def _note(response: pb.SearchResponse) -> None:
    """Have the line of the call say how it was answered."""
    record = access_log.current()
    record.hits = len(response.hits.ids)
    record.plan = response.plan.summary
    record.coverage = response.coverage.fraction if response.coverage.degradations else None


def _timing(composed: Composed) -> pb.Timing:
    return pb.Timing(decode_us=composed.decode_us, encode_us=composed.encode_us, compose_us=composed.compose_us)
