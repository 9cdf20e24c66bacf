"""A batch answers as its searches would one by one, whatever is mixed in it, and lets other calls take turns."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from grpc import aio
from tests.unit.panic import Panic
from tests.unit.server.fakes import FakeGalleries, FakeModels, details
from tests.unit.server.stubs import Stubs, by_vector, equals, ids, shop, vectors
from tests.unit.server.waiting import until

from likewise import wire
from likewise.server import search_groups
from likewise.server.batch_search import STEP, answer_batch
from likewise.server.metrics import Metrics
from likewise.server.search import Searcher
from likewise.server.validate_search import question
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

MATRIX = vectors(20)


def _reference(reference: pb.Reference, **fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(gallery="shop", reference=reference, **fields)  # type: ignore[arg-type]


def _vector(**fields: object) -> pb.SearchRequest:
    """A search by a vector some of whose fields are others."""
    message = wire.encode_vector(MATRIX[7])
    for name, value in fields.items():
        setattr(message, name, value)
    return _reference(pb.Reference(vector=message), k=3)


def _numbers(number: float) -> bytes:
    row = MATRIX[7].copy()
    row[2] = number
    return bytes(row.tobytes())


PLAIN = [by_vector(row, k=3) for row in MATRIX[:4]]
TOO_LONG = "x" * 129
BAD_VECTORS = [
    _vector(data=_numbers(float("nan"))),
    _vector(data=_numbers(float("inf"))),
    _vector(data=bytes(32)),
    _vector(data=bytes(31)),
    _vector(data=b""),
    _vector(data=np.full(8, 3e38, np.float32).tobytes()),
    _vector(dim=4, data=bytes(16)),
    _vector(dim=0),
    _vector(dtype=99),
    _vector(space="sha256:of another model"),
]
GOOD_VECTORS = [
    _vector(data=np.full(8, 1e-40, np.float32).tobytes()),
    _vector(data=np.full(8, 1e38, np.float32).tobytes()),
    _vector(dtype=common_pb2.DTYPE_FLOAT16, data=MATRIX[7].astype(np.float16).tobytes()),
    _vector(dtype=common_pb2.DTYPE_UNSPECIFIED),
    _vector(space="sha256:fake"),
]
OTHERS = [
    pb.SearchRequest(),
    pb.SearchRequest(gallery="elsewhere", reference=PLAIN[0].reference),
    pb.SearchRequest(gallery="shop"),
    by_vector(MATRIX[0], k=0),
    by_vector(MATRIX[0], k=3, request_id=TOO_LONG),
    by_vector(MATRIX[0], k=3, space="unknown"),
    by_vector(MATRIX[0], k=3, filter=equals("colour", "red")),
    by_vector(MATRIX[0], k=3, filter=equals("size", "red")),
    by_vector(MATRIX[0], k=3, mask=pb.ResultMask(attributes=["*"], vectors=True)),
    by_vector(MATRIX[0], k=20, cutoff=pb.Cutoff(min_score=0.3)),
    by_vector(MATRIX[0], k=20, cutoff=pb.Cutoff(relative=0.5)),
    by_vector(MATRIX[0], k=3, params=pb.SearchParams(ef=50)),
    by_vector(MATRIX[0], k=3, partial=pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW)),
    by_vector(MATRIX[0], k=3, conditions=[pb.Condition(text="in red")]),
    by_vector(MATRIX[0], k=3, at_least=common_pb2.VersionToken(gallery_id="another", version=1)),
    _reference(pb.Reference(text="a red circle"), k=3),
    _reference(pb.Reference(text=" "), k=3),
    _reference(pb.Reference(image=b"one"), k=3),
    _reference(pb.Reference(image=b"a bad one"), k=3),
    _reference(pb.Reference(item_id="item-05"), k=3),
    _reference(pb.Reference(item_id="item-99"), k=3),
]


def _outcome(result: pb.BatchSearchResult) -> pb.BatchSearchResult:
    """A result without what differs from run to run."""
    outcome = pb.BatchSearchResult()
    outcome.CopyFrom(result)
    if outcome.HasField("response"):
        outcome.response.ClearField("timing")
    return outcome


async def _alone(stubs: Stubs, request: pb.SearchRequest) -> pb.BatchSearchResult:
    """The result that a search has as a call of its own."""
    try:
        return _outcome(pb.BatchSearchResult(response=await stubs.search.Search(request)))
    except aio.AioRpcError as error:
        return pb.BatchSearchResult(error=details(error))


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(PLAIN, id="a run"),
        pytest.param([*PLAIN[:2], *BAD_VECTORS, *PLAIN[2:]], id="bad vectors within a run"),
        pytest.param([*BAD_VECTORS, *PLAIN], id="bad vectors before a run"),
        pytest.param([*PLAIN, *GOOD_VECTORS, *PLAIN], id="unusual vectors within a run"),
        pytest.param([one for other in OTHERS for one in (*PLAIN[:2], other)], id="everything between runs"),
        pytest.param([one for other in OTHERS for one in (other, other, other)], id="everything in runs"),
    ],
)
async def test_a_batch_answers_as_its_searches_do_one_by_one(requests: Sequence[pb.SearchRequest]) -> None:
    named = []
    for i, request in enumerate(requests):
        named.append(pb.SearchRequest())
        named[-1].CopyFrom(request)
        named[-1].request_id = request.request_id or f"search {i}"
    async with shop() as stubs:
        together = await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=named))
        alone = [await _alone(stubs, request) for request in named]

    assert len(together.results) == len(alone)
    for got, expected, request in zip(together.results, alone, named, strict=True):
        assert _outcome(got) == expected, request


async def test_searches_without_an_id_echo_that_of_the_call() -> None:
    async with shop() as stubs:
        response = await stubs.search.BatchSearch(
            pb.BatchSearchRequest(requests=[*PLAIN, by_vector(MATRIX[0], k=3, request_id="own")]),
            metadata=(("x-request-id", "the call"),),
        )

    assert [result.response.request_id for result in response.results] == ["the call"] * 4 + ["own"]


async def test_a_bad_vector_leaves_the_others_of_its_run_in_one_call() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=[*PLAIN[:2], BAD_VECTORS[0], *PLAIN[2:]]))

    assert galleries.shards("shop")[0].batches == [4]


async def test_what_a_run_shares_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def noted(*asked: object) -> object:
        checked.append(asked)
        return question(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr("likewise.server.prepare.question", noted)
    requests = [by_vector(row, k=3, request_id=f"search {i}") for i, row in enumerate(MATRIX)]
    async with shop() as stubs:
        await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=[*requests, by_vector(MATRIX[0], k=4)]))

    assert len(checked) == 2


async def test_batches_of_several_callers_reach_a_shard_as_one_call() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1):
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        batches = [MATRIX[:3], MATRIX[3:7], MATRIX[7:9]]
        calls = []
        async with Searching(galleries) as searcher:
            for rows in batches:
                work = answer_batch(searcher, [by_vector(row, k=1) for row in rows], concurrency=8)
                calls.append(asyncio.create_task(work))
                await asyncio.sleep(0)
            shard.gate.set()
            outcomes = [await call for call in calls]

    assert shard.batches == [3, 6]
    found = [outcome.hits.ids[0] for answers in outcomes for outcome in answers]
    assert found == ids(9)


async def test_a_large_batch_goes_to_a_shard_in_calls_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_groups, "MAX_HITS", 12)
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        response = await stubs.search.BatchSearch(
            pb.BatchSearchRequest(requests=[by_vector(row, k=4) for row in MATRIX])
        )

    assert galleries.shards("shop")[0].batches == [3] * 6 + [2]
    assert [result.response.hits.ids[0] for result in response.results] == ids(20)


async def test_a_failing_group_is_the_error_of_its_searches_alone() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        galleries.shards("shop")[0].failure = RuntimeError("a defect")
        response = await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=[*PLAIN, by_vector(MATRIX[0], k=0)]))

    *failed, refused = response.results
    assert {result.error.code for result in failed} == {14}
    assert refused.error.code == 3


@pytest.mark.parametrize("others", [0, 1])
async def test_a_cancelled_batch_takes_its_searches_along(others: int) -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1):
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        requests = [*PLAIN, *[by_vector(MATRIX[0], k=5)] * others]
        async with Searching(galleries) as searcher:
            batch = asyncio.create_task(answer_batch(searcher, requests, concurrency=8))
            await until(lambda: len(shard.batches) == 1 + others)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            assert shard.cancelled == 1 + others


async def test_a_panic_ends_the_call_rather_than_leaving_it_without_an_answer() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        galleries.shards("shop")[0].failure = Panic("a defect")  # type: ignore[assignment]
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=PLAIN))

    assert details(caught.value).code == 13


async def test_a_long_batch_lets_others_take_turns_while_it_is_prepared() -> None:
    galleries = FakeGalleries()
    turns: list[int] = []
    async with shop(galleries), Searching(galleries) as searcher:
        begin_all, begun = searcher.begin_all, 0

        def counted(requests: Sequence[pb.SearchRequest]) -> object:
            nonlocal begun
            begun += len(requests)
            return begin_all(requests)

        async def other() -> None:
            while begun < 3 * STEP:
                turns.append(begun)
                await asyncio.sleep(0)

        searcher.begin_all = counted  # type: ignore[method-assign, assignment]
        answered = answer_batch(searcher, [by_vector(MATRIX[0])] * (3 * STEP), concurrency=8)
        outcomes, _ = await asyncio.gather(answered, other())

    assert len(outcomes) == 3 * STEP
    assert {STEP, 2 * STEP} <= set(turns)


class Searching:
    """A pipeline of its own over the galleries of a server, for as long as the block lasts."""

    def __init__(self, galleries: FakeGalleries) -> None:
        self._galleries = galleries
        self._executor = ThreadPoolExecutor(1)

    async def __aenter__(self) -> Searcher:
        return Searcher(
            models=FakeModels(), galleries=self._galleries, metrics=Metrics(version="test"), executor=self._executor
        )

    async def __aexit__(self, *_: object) -> None:
        self._executor.shutdown()
