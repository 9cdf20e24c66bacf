"""One checker for each rpc of the public services: a call, and everything that is known about its answer."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from tests.faults.checker import TIMEOUT_S, TOLERATED, Caller, Checker
from tests.faults.ledger import ABSENT

from likewise.client import BatchError, F, LikewiseError, Query
from likewise.client.errors import from_rpc, from_status
from likewise.client.hits import Hits
from likewise.shards.spec import shard_hash
from likewise.v1 import (
    common_pb2,
    item_service_pb2,
    item_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from likewise.wire import encode_column, encode_vector, encode_vectors

F32 = npt.NDArray[np.float32]

DIM: Final = 8
GALLERY: Final = "under-load"
STATIC: Final = 300
ATTRIBUTES: Final[dict[str, object]] = {"value": "int64", "kind": "string"}


def vector_of(value: int) -> F32:
    """(DIM,) float32: what write `value` made of its item."""
    return np.random.default_rng(value).normal(size=DIM).astype(np.float32)


def kind_of(item: str) -> str:
    """Which checker writes an item; the attribute "kind" says the same."""
    return item.split("-", 1)[0]


def write_static(caller: Caller) -> None:
    """Items that nobody changes."""
    _write(caller, [f"static-{i:04d}" for i in range(STATIC)])


def verify(caller: Caller, limit_s: float = 120.0) -> int:
    """Compare everything with the ledger when the faults are over; gives the number of items that are there.

    What recovers yet may refuse for so long.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            return _verified(caller)
        except TOLERATED:
            if time.monotonic() > until:
                raise


def _verified(caller: Caller) -> int:
    since = time.monotonic()
    got = caller.gallery.get(sorted(caller.ledger.items()), vectors=True, timeout=60)
    assert got.vectors is not None
    _consistent(caller, got.ids, got.attributes, since, got.vectors)
    _really_missing(caller, got.missing, since)
    count = caller.gallery.count(timeout=60)
    assert count == len(got.ids), f"{count} items are counted, {len(got.ids)} are there"
    return count


def _upsert(caller: Caller) -> None:
    _write(caller, caller.rng.sample(caller.own("upsert"), 3))


def _stream_upsert(caller: Caller) -> None:
    item = caller.rng.choice(caller.own("stream"))
    value = caller.ledger.next_value()
    items = item_service_pb2.Items(ids=[item], vectors=encode_vectors(vector_of(value)[None]))
    items.attributes.append(encode_column("value", common_pb2.ATTRIBUTE_TYPE_INT64, [value]))
    items.attributes.append(encode_column("kind", common_pb2.ATTRIBUTE_TYPE_STRING, ["stream"]))
    request = item_service_pb2.UpsertRequest(gallery=caller.gallery.name, items=items, request_id=f"stream-{value}")
    stub = item_service_pb2_grpc.ItemServiceStub(caller.channel)
    with caller.ledger.writing({item: value}):
        message = item_service_pb2.StreamUpsertRequest(sequence=value, request=request)
        answer = _streamed(stub.StreamUpsert, message)
        if answer.HasField("error"):
            raise from_status(answer.error)
        # The SDK knows nothing of that call. A later write of its own makes all reads of the shared handle see both.
        _write(caller, [f"mark-{caller.number}"])
    assert (answer.sequence, answer.response.upserted) == (value, 1)


def _delete(caller: Caller) -> None:
    ids = caller.rng.sample(caller.own("delete"), 2)
    _write(caller, ids)
    with caller.ledger.writing(dict.fromkeys(ids)):
        caller.gallery.delete(ids, timeout=TIMEOUT_S)
    got = caller.gallery.get(ids, timeout=TIMEOUT_S)
    assert not got.ids, f"deleted, and still there: {got.ids}"


def _delete_by_filter(caller: Caller) -> None:
    ids = caller.rng.sample(caller.own("where"), 3)
    values = _write(caller, ids)
    doomed = [item for item, value in values.items() if value != max(values.values())]
    with caller.ledger.writing(dict.fromkeys(doomed)):
        mine = F.value.isin([values[item] for item in doomed])
        caller.gallery.delete(where=(F.kind == "where") & mine, timeout=TIMEOUT_S)
    got = caller.gallery.get(ids, timeout=TIMEOUT_S)
    assert sorted(got.ids) == sorted(set(ids) - set(doomed))


def _get(caller: Caller) -> None:
    ids = [*caller.rng.sample(caller.own("upsert"), 4), *caller.rng.sample(caller.own("delete"), 2)]
    since = time.monotonic()
    got = caller.gallery.get(ids, vectors=True, timeout=TIMEOUT_S)
    assert got.vectors is not None or not got.ids
    _consistent(caller, got.ids, got.attributes, since, got.vectors)
    _really_missing(caller, got.missing, since)
    assert sorted([*got.ids, *got.missing]) == sorted(ids)


def _list(caller: Caller) -> None:
    since = time.monotonic()
    got = list(islice(caller.gallery.list(where=F.kind == "static", page_size=50, timeout=TIMEOUT_S), 100))
    assert [item.id for item in got] == [f"static-{i:04d}" for i in range(100)]
    _consistent(caller, [item.id for item in got], [item.attributes for item in got], since, None)


def _count(caller: Caller) -> None:
    since = time.monotonic()
    got = caller.gallery.count(timeout=TIMEOUT_S)
    few, many = caller.ledger.live_bounds(since, time.monotonic())
    assert few <= got <= many, f"{got} items are counted, there are {few} to {many}"


def _search(caller: Caller) -> None:
    """What this caller wrote last is found, and whatever else is found may be there."""
    since = time.monotonic()
    own = caller.rng.choice(caller.own("upsert"))
    value = caller.ledger.certain(own)
    query = vector_of(value or caller.rng.randrange(1 << 30))
    hits = caller.gallery.search(vector=query, k=10, attributes=True, timeout=TIMEOUT_S)
    _true(caller, hits, query, since)
    assert hits.coverage.fraction == 1.0, f"{hits.coverage} under FAIL"
    if value is not None:
        assert own in hits.ids, f"{own} is acknowledged as {value} and not found"


def _filtered_search(caller: Caller) -> None:
    since = time.monotonic()
    kind = caller.rng.choice(("static", "upsert", "delete", "where", "stream"))
    query = vector_of(caller.rng.randrange(1 << 30))
    hits = caller.gallery.search(vector=query, k=20, where=F.kind == kind, attributes=True, timeout=TIMEOUT_S)
    _true(caller, hits, query, since)
    assert {row["kind"] for row in hits.attributes} <= {kind}, "the filter leaks"
    if kind == "static":
        assert len(hits) == 20, "the filter starves"


def _partial_search(caller: Caller) -> None:
    since = time.monotonic()
    query = vector_of(caller.rng.randrange(1 << 30))
    hits = caller.gallery.search(vector=query, k=20, partial=True, attributes=True, timeout=TIMEOUT_S)
    _true(caller, hits, query, since)


def _batch_search(caller: Caller) -> None:
    queries = [vector_of(caller.rng.randrange(1 << 30)) for _ in range(3)]
    _all_true(caller, queries, [Query(vector=query) for query in queries])


def _search_vectors(caller: Caller) -> None:
    queries = [vector_of(caller.rng.randrange(1 << 30)) for _ in range(3)]
    _all_true(caller, queries, np.stack(queries))


def _all_true(caller: Caller, queries: Sequence[F32], asked: Sequence[Query] | F32) -> None:
    since = time.monotonic()
    try:
        answers = caller.gallery.search_batch(asked, k=5, attributes=True, timeout=TIMEOUT_S)
    except BatchError as error:
        failures = [failure for failure in error.results if isinstance(failure, LikewiseError)]
        raise next((one for one in failures if not isinstance(one, TOLERATED)), failures[0]) from error
    for query, hits in zip(queries, answers, strict=True):
        _true(caller, hits, query, since)


def _stream_search(caller: Caller) -> None:
    since = time.monotonic()
    query = vector_of(caller.rng.randrange(1 << 30))
    request = search_service_pb2.SearchRequest(
        gallery=caller.gallery.name,
        reference=search_service_pb2.Reference(vector=encode_vector(query)),
        k=5,
        mask=search_service_pb2.ResultMask(attributes=["*"]),
    )
    stub = search_service_pb2_grpc.SearchServiceStub(caller.channel)
    answer = _streamed(stub.StreamSearch, search_service_pb2.StreamSearchRequest(correlation_id=7, request=request))
    if answer.HasField("error"):
        raise from_status(answer.error)
    assert answer.correlation_id == 7
    hits = Hits(answer.response)
    # It sends no version along, so it may see what was there a moment ago.
    _true(caller, hits, query, since - 60.0)


def _compose(caller: Caller) -> None:
    query = vector_of(caller.rng.randrange(1 << 30))
    made = caller.gallery.compose(vector=query, timeout=TIMEOUT_S)
    np.testing.assert_allclose(made.vector, query / np.linalg.norm(query), atol=1e-5)


def _gallery_get(caller: Caller) -> None:
    info = caller.client.gallery(caller.gallery.name).info(timeout=TIMEOUT_S)
    assert (info.name, info.dim) == (caller.gallery.name, DIM)


def _gallery_list(caller: Caller) -> None:
    assert caller.gallery.name in [info.name for info in caller.client.galleries(timeout=TIMEOUT_S)]


def _gallery_stats(caller: Caller) -> None:
    stats = caller.gallery.stats(timeout=TIMEOUT_S)
    assert [shard.shard for shard in stats.shards] == list(range(stats.gallery.shards))


def _model_list(caller: Caller) -> None:
    assert any(model.in_use for model in caller.client.models(timeout=TIMEOUT_S))


def _health(caller: Caller) -> None:
    caller.client.health(timeout=TIMEOUT_S)


def all_rpcs(found_by_text: Sequence[str]) -> dict[str, Checker]:
    """Every checker; `found_by_text` is what the gallery "pictures", which nobody changes, answers to a text."""
    return RPCS | {"SearchService.Search with a text": _text_search(found_by_text)}


def _text_search(expected: Sequence[str]) -> Checker:
    """A search that has to encode."""

    def check(caller: Caller) -> None:
        handle = caller.client.gallery("pictures")
        assert handle.search(text="a red circle", k=3, timeout=TIMEOUT_S).ids == list(expected)

    return check


RPCS: Final[dict[str, Checker]] = {
    "ItemService.Upsert": _upsert,
    "ItemService.StreamUpsert": _stream_upsert,
    "ItemService.Delete": _delete,
    "ItemService.Delete by filter": _delete_by_filter,
    "ItemService.Get": _get,
    "ItemService.List": _list,
    "ItemService.Count": _count,
    "SearchService.Search": _search,
    "SearchService.Search with a filter": _filtered_search,
    "SearchService.Search allowing partial answers": _partial_search,
    "SearchService.BatchSearch": _batch_search,
    "SearchService.SearchVectors": _search_vectors,
    "SearchService.StreamSearch": _stream_search,
    "SearchService.Compose": _compose,
    "GalleryService.Get": _gallery_get,
    "GalleryService.List": _gallery_list,
    "GalleryService.Stats": _gallery_stats,
    "ModelService.List": _model_list,
    "Health.Check": _health,
}


def _write(caller: Caller, ids: Sequence[str]) -> dict[str, int]:
    values = {item: caller.ledger.next_value() for item in ids}
    with caller.ledger.writing(dict(values)):
        caller.gallery.upsert(
            ids,
            vectors=np.stack([vector_of(value) for value in values.values()]),
            attributes={"value": list(values.values()), "kind": [kind_of(item) for item in ids]},
            timeout=TIMEOUT_S,
        )
    return values


def _true(caller: Caller, hits: Hits, query: F32, since: float) -> None:
    """What holds of every answer, a partial one too."""
    assert len(set(hits.ids)) == len(hits.ids)
    assert hits.ids == [item for _, item in sorted(zip(-hits.scores, hits.ids, strict=True))]
    _consistent(caller, hits.ids, hits.attributes, since, None)
    for item, row, score in zip(hits.ids, hits.attributes, hits.scores, strict=True):
        vector = vector_of(row["value"]).astype(np.float64)  # type: ignore[arg-type]  # an int64 attribute
        cosine = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query.astype(np.float64))
        assert abs(cosine - score) < 1e-5, f"{item} has the score {score}, its vector {cosine}"
    coverage = hits.coverage
    lost = {shard for why in coverage.degradations for shard in why.shards}
    assert coverage.shards_ok + len(lost) == coverage.shards_total
    assert coverage.items_searched + sum(why.items for why in coverage.degradations) == coverage.items_total
    share = coverage.items_searched / coverage.items_total if coverage.items_total else 1.0
    assert abs(coverage.fraction - share) < 1e-9
    from_lost = [item for item in hits.ids if shard_hash(item) % coverage.shards_total in lost]
    assert not from_lost, f"{from_lost} are of the shards {sorted(lost)}, which are said not to have answered"
    if not lost:
        few, many = caller.ledger.live_bounds(since, time.monotonic())
        assert few <= coverage.items_total <= many, f"{coverage.items_total} items in all, there are {few} to {many}"


def _consistent(
    caller: Caller, ids: Sequence[str], attributes: Sequence[dict[str, Any]], since: float, vectors: F32 | None
) -> None:
    """Every item may be what it is now, as a whole: attributes and vector are of one write."""
    until = time.monotonic()
    for row, item in enumerate(ids):
        value = attributes[row]["value"]
        possible = caller.ledger.possible(item, since, until)
        assert value in possible, f"{item} is {value}, it may be one of {possible}"
        assert attributes[row]["kind"] == kind_of(item)
        if vectors is not None:
            np.testing.assert_allclose(vectors[row], vector_of(value), rtol=1e-5, atol=1e-6)


def _really_missing(caller: Caller, ids: Sequence[str], since: float) -> None:
    for item in ids:
        possible = caller.ledger.possible(item, since, time.monotonic())
        assert possible & ABSENT, f"{item} is lost, it was acknowledged as one of {possible}"


def _streamed(method: Any, message: Any) -> Any:
    """The answer to a stream of one message."""
    try:
        answers: Iterator[Any] = method(iter([message]), timeout=TIMEOUT_S)
        answer, *more = list(answers)
    except grpc.RpcError as error:
        failure: Any = error
        raise from_rpc(failure.code(), failure.details() or "", failure.trailing_metadata() or ()) from error
    assert not more
    return answer
