"""The search pipeline: resolve → compose → fan out → merge → cut → reply.

A search is prepared (everything up to its query vector) and then answered. Prepared searches that share gallery,
options and policy are answered by one call to each shard, so that a batch costs one scan instead of many; searches of
many callers are put together for that (`search_groups`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple, TypeVar

import numpy as np

from likewise.server import access_log, answer, content, spaces, validate
from likewise.server.compose import Composed, as_given, compose_query
from likewise.server.errors import NotFound, ServiceError
from likewise.server.fan_out import LiveCounts, fan_out
from likewise.server.metrics import Metrics
from likewise.server.prepared import Prepared
from likewise.server.protocols import Galleries, GalleryHandle, Models
from likewise.server.query import ImageReference, ReferenceInput, StoredReference, VectorReference
from likewise.server.recent_queries import LiveQuery, RecentQueries
from likewise.server.respond import respond
from likewise.server.search_forms import Forms
from likewise.server.search_groups import SearchGroups
from likewise.server.validate_search import ItemReference, Question, question
from likewise.server.version_tokens import VersionTokens
from likewise.shards.spec import GallerySpec, SpaceSpec, shard_hash
from likewise.v1 import search_service_pb2 as pb

T = TypeVar("T")

_OFF_LOOP_CELLS: Final = 4_096
"""Hits times columns from which merging and packing leaves the event loop: about a millisecond of work."""

_OFF_LOOP_BYTES: Final = 1 << 18
"""Image size from which its digest leaves the event loop: SHA-256 takes about a millisecond for it."""


class _Resolved(NamedTuple):
    """A reference looked up: what the query is composed from, and what the answer leaves out."""

    reference: ReferenceInput | None
    excluded_ids: tuple[str, ...] = ()
    excluded_content: int | None = None


class Searcher:
    """Searches the galleries with the models; holds no state of its own but row counts.

    Args:
        models: Where galleries' encoders come from.
        galleries: What can be searched.
        metrics: Where plans and stages are counted.
        executor: Runs hashing, merging and packing of large answers.
        recent: Where some of the queries are kept, to try the next version of a model on; None to keep none.
        tokens: What is known of galleries' versions; by default nothing yet.
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
    ) -> None:
        self._models = models
        self._galleries = galleries
        self._metrics = metrics
        self._executor = executor
        self._recent = recent
        self._tokens = tokens or VersionTokens()
        self._live = LiveCounts()
        self._forms = Forms()
        self._groups = SearchGroups(self.answer)

    async def search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        """Answer one search."""
        prepared = await self.prepare(request)
        response = await self._groups.answer(prepared)
        record = access_log.current()
        record.hits = len(response.hits.ids)
        record.plan = response.plan.summary
        record.coverage = response.coverage.fraction if response.coverage.degradations else None
        return response

    async def prepare(self, request: pb.SearchRequest) -> Prepared:
        """Check a search and make its query vector."""
        started = time.perf_counter()
        record = access_log.current()
        handle = self._galleries.get(validate.required(request.gallery, "gallery"))
        record.gallery = handle.spec.name
        form = self._forms.of(request, handle.spec)
        asked = question(request.reference, request.conditions, request.space, handle.spec)
        request_id = validate.request_id(request.request_id) if request.request_id else record.request_id
        record.k = form.k
        version = await self._tokens.least(request.at_least, handle) if request.HasField("at_least") else 0
        resolved = await self._resolve(asked, handle, min_version=version)
        composed = await self._compose(asked, resolved.reference, handle.spec)
        if not form.include_reference and isinstance(resolved.reference, ImageReference):
            data = resolved.reference.data
            digest = await self._run(len(data) >= _OFF_LOOP_BYTES, lambda: content.of_bytes(data))
            resolved = resolved._replace(excluded_content=digest)
        options = form.options(asked.space.name)
        if version:
            options = options._replace(min_version=version)
        if not form.include_reference and (resolved.excluded_ids or resolved.excluded_content is not None):
            options = options._replace(excluded_ids=resolved.excluded_ids, excluded_content=resolved.excluded_content)
        return Prepared(
            handle=handle,
            form=form,
            space=asked.space,
            composed=composed,
            options=options,
            request_id=request_id,
            started=started,
            ready=time.perf_counter(),
        )

    async def answer(
        self, searches: Sequence[Prepared], searched: Callable[[], None] = lambda: None
    ) -> list[pb.SearchResponse]:
        """Answer searches that have the same `key` with one call to each shard.

        Args:
            searches: At least one.
            searched: Called when the shards have done their part, before the answer is put together.
        """
        first, asked = searches[0], time.perf_counter()
        alone = len(searches) == 1
        queries = first.composed.vector[np.newaxis] if alone else np.stack([s.composed.vector for s in searches])
        try:
            found = await fan_out(first.handle, queries, first.options, partial=first.form.partial, live=self._live)
        except ServiceError as error:
            if "shard" in error.metadata:
                self._metrics.shard_requests.labels(error.reason).inc(len(searches))
            raise
        searched()
        cells = len(searches) * first.options.k * (1 + len(first.options.attributes) + first.options.vectors)
        started = time.perf_counter()
        hits = await self._run(
            cells > _OFF_LOOP_CELLS,
            lambda: answer.pack(
                found.answers,
                [search.form.cut for search in searches],
                k=first.options.k,
                spec=first.handle.spec,
                space=first.space.digest,
            ),
        )
        merge_us = round((time.perf_counter() - started) * 1e6)
        responses = respond(searches, found, hits, merge_us, asked)
        self._metrics.searches(responses)
        if first.options.filter and (live := found.coverage.items_searched):
            allowed = sum(shard.plan.allowed for shard in found.answers.values())
            self._metrics.filter_selectivity.observe(allowed / live, len(searches))
        return responses

    async def compose(self, request: pb.ComposeRequest) -> pb.ComposeResponse:
        """The query vector alone."""
        started = time.perf_counter()
        handle = self._galleries.get(validate.required(request.gallery, "gallery"))
        access_log.current().gallery = handle.spec.name
        asked = question(request.reference, request.conditions, request.space, handle.spec)
        resolved = await self._resolve(asked, handle, min_version=0)
        composed = await self._compose(asked, resolved.reference, handle.spec)
        timing = _timing(composed)
        timing.total_us = round((time.perf_counter() - started) * 1e6)
        return pb.ComposeResponse(
            vector=answer.vector_of(composed.vector, asked.space.digest),
            composition=composed.composition,
            models=composed.models,
            timing=timing,
            warnings=composed.warnings,
        )

    async def _resolve(self, asked: Question, handle: GalleryHandle, *, min_version: int) -> _Resolved:
        if isinstance(asked.reference, ItemReference):
            return await self._stored(asked.reference.id, asked.space, handle, min_version=min_version)
        return _Resolved(asked.reference)

    async def _stored(self, item: str, space: SpaceSpec, handle: GalleryHandle, *, min_version: int) -> _Resolved:
        shard = handle.shards[shard_hash(item) % len(handle.shards)]
        rows = await shard.fetch([item], space=space.name, vectors=True, min_version=min_version)
        if not rows.batch.num_rows or rows.vectors is None or rows.norms is None:
            raise NotFound(
                f"gallery {handle.spec.name!r} has no item {validate.shown(item)}",
                reason="ITEM_NOT_FOUND",
                field="reference.item_id",
            )
        digest = rows.batch.column("content")[0].as_py()
        raw = (rows.vectors[0] * rows.norms[0]).astype(np.float32)
        return _Resolved(StoredReference(item, raw), excluded_ids=(item,), excluded_content=digest)

    async def _compose(self, asked: Question, reference: ReferenceInput | None, spec: GallerySpec) -> Composed:
        """The query vector, by the models of one moment: whatever is promoted meanwhile, this query ends with them."""
        fitting = spaces.fit(self._models, asked.space, spec)
        if isinstance(reference, VectorReference) and reference.unit is not None and not asked.conditions:
            return as_given(reference.unit)
        if fitting is None:
            return await compose_query(None, asked.space.dim, reference=reference, conditions=asked.conditions)
        with fitting.family.lease():
            composed = await compose_query(
                fitting.family,
                asked.space.dim,
                reference=reference,
                conditions=asked.conditions,
                leading=fitting.leading,
            )
        if composed.models and self._recent is not None:
            self._recent.add(LiveQuery(fitting.family.name, spec.name, asked.space.name, reference, asked.conditions))
        return composed

    async def _run(self, large: bool, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work) if large else work()


def _timing(composed: Composed) -> pb.Timing:
    return pb.Timing(decode_us=composed.decode_us, encode_us=composed.encode_us, compose_us=composed.compose_us)
