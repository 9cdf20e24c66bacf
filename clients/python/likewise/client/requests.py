"""Arguments of a search as a request: pure, shared by both clients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from likewise.client import rpc
from likewise.client.errors import BatchError, InvalidArgument, InvalidType, LikewiseError, from_status
from likewise.client.filters import Filter, filter_message
from likewise.client.hits import Explanation, Hits, explanation
from likewise.client.images import Image
from likewise.client.references import (
    Condition,
    Mode,
    Reference,
    condition_message,
    given_kinds,
    reference_message,
    set_field,
)
from likewise.client.results import Composition, composition
from likewise.client.rpc import Call, make_call
from likewise.client.versions import GalleryMemory, VersionToken
from likewise.v1 import search_service_pb2 as search_pb

MAX_BATCH: Final = 1000  # requests a BatchSearch, as search_service.proto has it
DEFAULT_K: Final = 10
_BATCH_BYTES: Final = 4 << 20  # of requests a message: enough to amortise a call, little enough to flow
_BATCH_HITS: Final = 100_000  # hits an answer may bring: 50 MiB at the longest ids
_BATCH_VECTORS: Final = 4_096  # hits with vectors an answer may bring: 64 MiB at 4,096 dimensions


class Query(TypedDict, total=False):
    """Arguments of a search; each may be left out. `Query(text="a red star", k=5)` makes one for a batch.

    Attributes:
        image: Reference: a path, the bytes of an image file, a PIL image, or an (h, w, 3) uint8 array.
        text: Reference: a description.
        id: Reference: a stored item.
        vector: Reference: (d,) floats in the gallery's space.
        condition: What "similar" means, in words or as a `Condition`.
        mode: "focus" or "change", of a condition given in words.
        conditions: Several conditions; `condition` comes first when both are given.
        k: Hits wanted, default 10.
        where: Filter on attributes, see `F`.
        min_score: Leave out hits scored below.
        min_relevance: Leave out hits whose calibrated P(match) is below.
        relative: Leave out hits scored below this share of the best.
        exact: Compare with every live item that the filter leaves.
        target_recall: Expected recall@k.
        ef: HNSW candidates.
        nprobe: IVF lists visited.
        over_fetch: Candidates re-scored, as a multiple of k.
        attributes: Attributes to bring along: names, or True for all.
        vectors: Bring unit vectors along.
        explanation: Bring the scores of each condition along.
        include_reference: Keep the stored reference and its exact copies among the hits.
        partial: Answer from the shards that are there; otherwise the call fails when one is missing.
        min_coverage: Answer when at least this share of the items was searched; implies partial.
        at_least: What must be visible: True (default) the newest write made through this handle, a `VersionToken`, or
            False for whatever the shards have.
        space: Which of the gallery's spaces; default its first.
        request_id: Id of the call in the server's log; default a fresh one.
    """

    image: Image
    text: str
    id: str
    vector: npt.ArrayLike
    condition: str | Condition
    mode: Mode
    conditions: Sequence[str | Condition]
    k: int
    where: Filter | None
    min_score: float | None
    min_relevance: float | None
    relative: float | None
    exact: bool
    target_recall: float
    ef: int
    nprobe: int
    over_fetch: float
    attributes: Sequence[str] | bool
    vectors: bool
    explanation: bool
    include_reference: bool
    partial: bool
    min_coverage: float
    at_least: VersionToken | bool
    space: str
    request_id: str


_KNOWN: Final = frozenset(Query.__annotations__)


def search_call(memory: GalleryMemory, query: Query) -> Call[Hits]:
    """SearchService.Search."""
    request = search_request(memory, query)
    return make_call(rpc.SEARCH, request, Hits, request_id=request.request_id)


def explain_call(memory: GalleryMemory, ids: Sequence[str], query: Query) -> Call[Explanation]:
    """SearchService.Explain of a search and some more items."""
    request = search_request(memory, query)
    return make_call(
        rpc.EXPLAIN,
        search_pb.ExplainRequest(request=request, ids=ids),
        explanation,
        request_id=request.request_id,
    )


def compose_call(memory: GalleryMemory, query: Query) -> Call[Composition]:
    """SearchService.Compose; only reference, conditions, space and request_id of the query have a meaning here.

    Raises:
        InvalidArgument: If the query has something else.
    """
    allowed = {"image", "text", "id", "vector", "condition", "mode", "conditions", "space", "request_id"}
    if unused := sorted(set(query) - allowed):
        raise InvalidArgument(f"compose searches nothing and takes no {', '.join(unused)}", field=unused[0])
    full = search_request(memory, query)
    request = search_pb.ComposeRequest(gallery=full.gallery, conditions=full.conditions, space=full.space)
    if full.HasField("reference"):
        request.reference.CopyFrom(full.reference)
    return make_call(rpc.COMPOSE, request, composition, request_id=full.request_id)


def batch_calls(
    memory: GalleryMemory, queries: Sequence[Query] | npt.NDArray[Any], shared: Query
) -> Iterator[Call[list[Hits | LikewiseError]]]:
    """SearchService.BatchSearch in as many calls as its limits ask for, in order.

    Args:
        memory: The gallery.
        queries: One dict a query, or an (n, d) array of reference vectors.
        shared: Arguments of every query; a query's own win.
    """
    batch, size, hits = search_pb.BatchSearchRequest(), 0, 0
    for query in each_query(queries, shared):
        request = search_request(memory, query)
        request_bytes, wanted = request.ByteSize(), request.k if request.HasField("k") else DEFAULT_K
        limit = _BATCH_VECTORS if request.mask.vectors else _BATCH_HITS
        full = size + request_bytes > _BATCH_BYTES or hits + wanted > limit or len(batch.requests) == MAX_BATCH
        if batch.requests and full:
            yield make_call(rpc.BATCH_SEARCH, batch, _batch_results)
            batch, size, hits = search_pb.BatchSearchRequest(), 0, 0
        batch.requests.append(request)
        size, hits = size + request_bytes, hits + wanted
    if batch.requests:
        yield make_call(rpc.BATCH_SEARCH, batch, _batch_results)


def batch_hits(answers: Iterable[list[Hits | LikewiseError]]) -> list[Hits]:
    """Answers of consecutive BatchSearch calls as one list.

    Raises:
        BatchError: If a query failed; it has the answers of the others.
    """
    results = [result for answer in answers for result in answer]
    hits = [result for result in results if isinstance(result, Hits)]
    if len(hits) < len(results):
        raise BatchError(results)
    return hits


def each_query(queries: Iterable[Query] | npt.NDArray[Any], shared: Query) -> Iterator[Query]:
    """Queries with what they share filled in.

    Raises:
        InvalidArgument: If an array is not two-dimensional.
        InvalidType: If a query is no dict.
    """
    if isinstance(queries, np.ndarray):
        if queries.ndim != 2:
            raise InvalidArgument(
                f"a batch of vectors must have the shape (n, d), got {queries.shape}", field="queries"
            )
        for vector in queries:
            yield {**shared, "vector": vector}
        return
    for index, query in enumerate(queries):
        if not isinstance(query, Mapping):
            raise InvalidType(f"query {index} must be a Query (a dict), got a {type(query).__name__}", field="queries")
        yield {**shared, **query}


def search_request(memory: GalleryMemory, query: Query) -> search_pb.SearchRequest:
    """The request of a query.

    Raises:
        InvalidArgument: If arguments contradict each other, name nothing known or do not fit their fields.
    """
    request = search_form(memory, query)
    request.request_id = query.get("request_id") or rpc.new_request_id()
    reference = Reference(
        image=query.get("image"), text=query.get("text"), id=query.get("id"), vector=query.get("vector")
    )
    if given_kinds(reference):
        request.reference.CopyFrom(reference_message(reference, ""))
    elif not request.conditions:
        raise InvalidArgument(
            "nothing to search for: give a reference (image=, text=, id= or vector=) or a condition=", field="reference"
        )
    return request


def search_form(memory: GalleryMemory, query: Query) -> search_pb.SearchRequest:
    """All of a request but reference and id.

    Raises:
        InvalidArgument: As `search_request`.
    """
    if not _KNOWN.issuperset(query):
        unknown = min(set(query) - _KNOWN)
        raise InvalidType(f"unknown argument {unknown!r} of a search", field=unknown)
    request = search_pb.SearchRequest(
        gallery=memory.name,
        conditions=_conditions(query),
        filter=filter_message(query.get("where")),
        at_least=memory.at_least(query.get("at_least", True)),
        space=query.get("space", ""),
        include_reference=query.get("include_reference", False),
    )
    if "k" in query:
        set_field(request, "k", query["k"])
    _set_cutoff(request, query)
    for name in ("exact", "target_recall", "ef", "nprobe", "over_fetch"):
        if (value := query.get(name)) is not None:
            set_field(request.params, name, value)
    if wanted := wanted_attributes(query.get("attributes", False)):
        request.mask.attributes.extend(wanted)
    for name in ("vectors", "explanation"):
        if name in query:
            set_field(request.mask, name, query.get(name))
    _set_partial(request, query)
    return request


def wanted_attributes(attributes: Sequence[str] | bool) -> list[str]:
    """Names for a mask: all of them as "*".

    Raises:
        InvalidType: If it is one name instead of a list.
    """
    if isinstance(attributes, bool):
        return ["*"] if attributes else []
    if isinstance(attributes, str):
        raise InvalidType(
            f"attributes must be a list of names, True or False; write [{attributes!r}]", field="attributes"
        )
    return list(attributes)


def _conditions(query: Query) -> list[search_pb.Condition]:
    given = list(query.get("conditions", ()))
    mode, single = query.get("mode"), query.get("condition")
    if isinstance(query.get("conditions"), str):
        raise InvalidType("conditions must be a list; write condition= for one", field="conditions")
    if mode is not None and not isinstance(single, str):
        raise InvalidArgument(
            "mode= belongs to a condition= in words; give other conditions their own, as Condition(text, mode=...)",
            field="mode",
        )
    if single is not None:
        given.insert(0, Condition(single, mode=mode) if isinstance(single, str) else single)
    return [condition_message(one, f"conditions[{index}]") for index, one in enumerate(given)]


def _set_cutoff(request: search_pb.SearchRequest, query: Query) -> None:
    given = [name for name in ("min_score", "min_relevance", "relative") if query.get(name) is not None]
    if len(given) > 1:
        raise InvalidArgument(f"one cut-off at a time, got {' and '.join(given)}", field="cutoff")
    for name in given:
        set_field(request.cutoff, name, query.get(name))


def _set_partial(request: search_pb.SearchRequest, query: Query) -> None:
    min_coverage = query.get("min_coverage")
    allowed = query.get("partial", min_coverage is not None)
    if min_coverage is not None and not allowed:
        raise InvalidArgument("min_coverage needs partial=True", field="min_coverage")
    if allowed:
        request.partial.mode = search_pb.PARTIAL_POLICY_MODE_ALLOW
        if min_coverage is not None:
            set_field(request.partial, "min_coverage", min_coverage)
    elif "partial" in query:
        request.partial.mode = search_pb.PARTIAL_POLICY_MODE_FAIL


def _batch_results(message: search_pb.BatchSearchResponse) -> list[Hits | LikewiseError]:
    return [
        from_status(result.error) if result.HasField("error") else Hits(result.response) for result in message.results
    ]
