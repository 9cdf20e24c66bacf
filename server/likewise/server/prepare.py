"""From a search to its query vector: what is asked is checked, then the query is made.

Most searches bring their vector along. Nothing has to be awaited for these, so they are prepared in plain steps, and
many that differ in nothing but the vector have the rest checked once and their vectors normalised together.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple, TypeVar

import numpy as np

from likewise.server import access_log, content, spaces, validate
from likewise.server.compose import Composed, as_given, compose_query
from likewise.server.errors import InvalidRequest, NotFound
from likewise.server.kept_encodings import Encode, encode_anew
from likewise.server.prepared import Prepared
from likewise.server.protocols import Galleries, GalleryHandle, Models
from likewise.server.query import ImageReference, ReferenceInput, StoredReference, VectorReference
from likewise.server.recent_queries import LiveQuery, RecentQueries
from likewise.server.search_forms import Form, Forms
from likewise.server.search_groups import most_queries
from likewise.server.validate_search import ItemReference, Question, question
from likewise.server.version_tokens import VersionTokens
from likewise.shards.protocols import F32, Exclusion
from likewise.shards.spec import GallerySpec, SpaceSpec, shard_hash
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

T = TypeVar("T")

_OFF_LOOP_NUMBERS: Final = 1 << 18
"""Numbers of a matrix from which bringing its rows to unit length does."""


class Asked(NamedTuple):
    """A search that is checked and has no query vector yet.

    Attributes:
        handle: The gallery.
        form: What is asked for besides the query.
        question: What the query is made of.
        at_least: The version to wait for; None for any.
        request_id: To echo.
        started: `time.perf_counter()` when it came.
    """

    handle: GalleryHandle
    form: Form
    question: Question
    at_least: common_pb2.VersionToken | None
    request_id: str
    started: float


class Resolved(NamedTuple):
    """A reference looked up: what the query is composed from, and what the answer leaves out."""

    reference: ReferenceInput | None
    exclusion: Exclusion | None = None


class PreparedRows(NamedTuple):
    """The rows of a matrix that are searched for, and what is wrong with the others.

    Attributes:
        prepared: The search for the good ones; None if there are none.
        rows: How many there are of both.
        errors: The other rows with their errors, in order.
    """

    prepared: Prepared | None
    rows: int
    errors: Sequence[tuple[int, InvalidRequest]]


class Preparer:
    """Prepares searches; for one event loop.

    Args:
        models: Where galleries' encoders come from.
        galleries: What can be searched.
        executor: Runs the hashing of large images and the arithmetic of large matrices.
        recent: Where some of the queries are kept, to try the next version of a model on; None to keep none.
        tokens: What is known of galleries' versions.
        encode: How encoders are asked for queries.
    """

    def __init__(
        self,
        *,
        models: Models,
        galleries: Galleries,
        executor: Executor,
        recent: RecentQueries | None,
        tokens: VersionTokens,
        encode: Encode = encode_anew,
    ) -> None:
        self._encode = encode
        self._models = models
        self._galleries = galleries
        self._executor = executor
        self._recent = recent
        self._tokens = tokens
        self._forms = Forms()

    async def prepare(self, request: pb.SearchRequest) -> Prepared:
        """Check a search and make its query vector."""
        found = self.begin(request)
        return found if isinstance(found, Prepared) else await self.finish(found)

    def begin(self, request: pb.SearchRequest) -> Prepared | Asked:
        """Check a search; prepared already if its vector is in the request and nothing has to be awaited."""
        started = time.perf_counter()
        record = access_log.current()
        handle = self._galleries.get(validate.required(request.gallery, "gallery"))
        record.gallery = handle.spec.name
        form = self._forms.of(request, handle.spec)
        asked = question(request.reference, request.conditions, request.space, handle.spec)
        request_id = record.request_id  # which has been checked
        if request.request_id and request.request_id != request_id:
            request_id = validate.request_id(request.request_id)
        record.k = form.k
        at_least = request.at_least if request.HasField("at_least") else None
        unit = _given(asked) if at_least is None else None
        if unit is None:
            return Asked(handle, form, asked, at_least, request_id, started)
        spaces.fit(self._models, asked.space, handle.spec)
        options = form.options(asked.space.name)
        return Prepared(handle, form, asked.space, as_given(unit), options, request_id, started, time.perf_counter())

    def begin_all(self, requests: Sequence[pb.SearchRequest]) -> list[Prepared | Asked | Exception]:
        """As `begin` for each of them, in order; what refuses one comes in its place.

        This takes a few microseconds a search, without a pause.
        """
        begun: list[Prepared | Asked | Exception] = []
        for rest, run in itertools.groupby(requests, _but_its_vector):
            if rest is None:
                begun += map(self._begin_one, run)
            else:
                begun += self._begin_run(list(run))
        return begun

    async def prepare_rows(self, request: pb.SearchVectorsRequest) -> PreparedRows:
        """Check a search for each row of a matrix, and the rows."""
        started = time.perf_counter()
        record, search = access_log.current(), request.search
        handle = self._galleries.get(validate.required(search.gallery, "gallery"))
        record.gallery = handle.spec.name
        form = self._forms.of(search, handle.spec)
        record.k = form.k
        space = validate.space_of(handle.spec, search.space)
        if search.request_id and search.request_id != record.request_id:
            record.request_id = validate.request_id(search.request_id)
        if search.HasField("reference"):
            raise InvalidRequest(
                "search.reference is set, but the references are the rows of vectors: leave it unset",
                field="search.reference",
            )
        if search.conditions:
            raise InvalidRequest(
                f"search.conditions: got {len(search.conditions)}, the rows of a matrix are searched for as they are; "
                "BatchSearch takes conditions",
                field="search.conditions",
            )
        rows = validate.vectors(request.vectors, space, "vectors")
        if len(rows) > (most := most_queries(form.k)):
            raise InvalidRequest(
                f"vectors: at most {most} rows of {form.k:,} hits each in a call, got {len(rows):,}", field="vectors"
            )
        units, wrong = await self._run(rows.size > _OFF_LOOP_NUMBERS, lambda: validate.unit_rows(rows))
        errors = [(row, validate.no_direction(rows[row], f"vectors[{row}]")) for row in wrong]
        version = await self._tokens.least(search.at_least, handle) if search.HasField("at_least") else 0
        spaces.fit(self._models, space, handle.spec)
        if len(wrong) == len(rows):
            return PreparedRows(None, len(rows), errors)
        options = form.options(space.name)
        if version:
            options = options._replace(min_version=version)
        composed = as_given(np.delete(units, wrong, axis=0) if wrong else units)
        ready = time.perf_counter()
        prepared = Prepared(handle, form, space, composed, options, record.request_id, started, ready)
        return PreparedRows(prepared, len(rows), errors)

    async def finish(self, asked: Asked) -> Prepared:
        """Make the query vector of a search that is checked."""
        handle, form, what = asked.handle, asked.form, asked.question
        version = await self._tokens.least(asked.at_least, handle) if asked.at_least is not None else 0
        resolved = await self.resolve(what, handle, min_version=version)
        composed = await self.compose(what, resolved.reference, handle.spec)
        if not form.include_reference and isinstance(resolved.reference, ImageReference):
            data = resolved.reference.data
            digest = await self._run(len(data) >= content.OFF_LOOP_BYTES, lambda: content.of_bytes(data))
            resolved = resolved._replace(exclusion=Exclusion(content=digest))
        options = form.options(what.space.name)
        if version:
            options = options._replace(min_version=version)
        return Prepared(
            handle,
            form,
            what.space,
            composed,
            options,
            asked.request_id,
            asked.started,
            time.perf_counter(),
            None if form.include_reference else resolved.exclusion,
        )

    async def resolve(self, asked: Question, handle: GalleryHandle, *, min_version: int) -> Resolved:
        """Look the reference up if it is a stored item."""
        if isinstance(asked.reference, ItemReference):
            return await self._stored(asked.reference.id, asked.space, handle, min_version=min_version)
        return Resolved(asked.reference)

    async def compose(self, asked: Question, reference: ReferenceInput | None, spec: GallerySpec) -> Composed:
        """The query vector, by the models of one moment: whatever is promoted meanwhile, this query ends with them."""
        fitting = spaces.fit(self._models, asked.space, spec)
        unit = _given(asked)
        if unit is not None:
            return as_given(unit)
        if fitting is None:
            return await compose_query(None, asked.space.dim, reference=reference, conditions=asked.conditions)
        with fitting.family.lease():
            composed = await compose_query(
                fitting.family,
                asked.space.dim,
                reference=reference,
                conditions=asked.conditions,
                leading=fitting.leading,
                encode=self._encode,
            )
        if composed.models and self._recent is not None:
            self._recent.add(LiveQuery(fitting.family.name, spec.name, asked.space.name, reference, asked.conditions))
        return composed

    def _begin_one(self, request: pb.SearchRequest) -> Prepared | Asked | Exception:
        try:
            return self.begin(request)
        except Exception as error:
            return error

    def _begin_run(self, requests: Sequence[pb.SearchRequest]) -> list[Prepared | Asked | Exception]:
        """Searches that differ in the vector and the request id alone: one that is prepared does for those after it."""
        begun: list[Prepared | Asked | Exception] = []
        for i, request in enumerate(requests, start=1):
            begun.append(first := self._begin_one(request))
            if isinstance(first, Prepared):
                return begun + self._begin_like(first, requests[i:])
        return begun

    def _begin_like(self, first: Prepared, requests: Sequence[pb.SearchRequest]) -> list[Prepared | Asked | Exception]:
        started = time.perf_counter()
        handle, form, space, options = first.handle, first.form, first.space, first.options
        own_id = access_log.current().request_id
        units = validate.units([request.reference.vector for request in requests], space)
        begun: list[Prepared | Asked | Exception] = []
        for request, unit in zip(requests, units, strict=True):
            if unit is None:
                # Whatever it is about this one, it is told as if it had come alone.
                begun.append(self._begin_one(request))
                continue
            try:
                request_id = validate.request_id(request.request_id) if request.request_id else own_id
            except Exception as error:
                begun.append(error)
                continue
            begun.append(Prepared(handle, form, space, as_given(unit), options, request_id, started, started))
        return begun

    async def _stored(self, item: str, space: SpaceSpec, handle: GalleryHandle, *, min_version: int) -> Resolved:
        shard = handle.shards[shard_hash(item) % len(handle.shards)]
        rows = await shard.fetch([item], space=space.name, vectors=True, min_version=min_version)
        if not rows.ids or rows.vectors is None or rows.norms is None:
            raise NotFound(
                f"gallery {handle.spec.name!r} has no item {validate.shown(item)}",
                reason="ITEM_NOT_FOUND",
                field="reference.item_id",
            )
        unit = rows.vectors[0]
        stored = StoredReference(item, unit * rows.norms[0], unit)
        return Resolved(stored, Exclusion((item,), int(rows.content[0])))

    async def _run(self, large: bool, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work) if large else work()


def _given(asked: Question) -> F32 | None:
    """The query where it is the vector of the caller, at length 1; None where it has to be made."""
    if isinstance(asked.reference, VectorReference) and not asked.conditions:
        return asked.reference.unit
    return None


def _but_its_vector(request: pb.SearchRequest) -> bytes | None:
    """All of a search by vector but the vector and the request id: equal bytes ask for the same; None for others.

    A copy without the two takes less time than putting its other fields together one by one.
    """
    if request.reference.WhichOneof("kind") != "vector":
        return None
    rest = pb.SearchRequest()
    rest.CopyFrom(request)
    rest.ClearField("reference")
    rest.ClearField("request_id")
    return rest.SerializeToString()
