"""The shard itself answers the same in process and behind a channel, column for column."""

import functools
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pyarrow as pa
import pytest
from tests.unit.server.remote.loopback import SPEC, Loopback, rows

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.remote import shard_stub
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.shards import layout
from likewise.shards.protocols import F32, I64, Changes, Delta, Exclusion, SearchOptions, UnknownAttribute
from likewise.shards.shard import Shard
from likewise.shards.spec import shard_hash
from likewise.v1 import common_pb2

IDS = [item_id for item_id in (f"{'rgb'[n % 3]}{n:03d}" for n in range(120)) if shard_hash(item_id) % 2 == 1]
RED = common_pb2.Filter(
    comparison=common_pb2.Comparison(
        attribute="colour",
        operator=common_pb2.COMPARISON_OPERATOR_EQUAL,
        value=common_pb2.Value(string_value="r"),
    )
).SerializeToString(deterministic=True)


def _unit(n: int) -> F32:
    vectors = np.random.default_rng(7).standard_normal((n, 4)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class OneVersion:
    """`PartitionSource` of one version."""

    def version(self) -> int:
        return 3

    def load(self, version: int, *, held: I64 | None = None) -> Iterator[pa.RecordBatch]:
        yield rows(IDS, _unit(len(IDS)), version=version)

    def changes(self, since: int, until: int) -> Changes:
        return Changes(until, layout.empty_batch(SPEC), [])


@pytest.fixture
async def shard() -> AsyncIterator[Shard]:
    shard = Shard(SPEC, 1, OneVersion())
    await shard.start()
    yield shard
    await shard.close()


@pytest.fixture
async def stub(shard: Shard, loopback: Loopback) -> ShardStub:
    address = await loopback.endpoint(functools.partial(_register, shard))
    route: ShardRoute = ShardRoute(
        "shard 1", loopback.channels, shard_service_pb2_grpc.ShardServiceStub, addresses=[address]
    )
    return ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)


LEFT_OUT = Exclusion((IDS[0],), 4), Exclusion(), Exclusion((IDS[1],))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SearchOptions(space="default", k=5), id="plain"),
        pytest.param(SearchOptions(space="", k=5, exact=True, attributes=("colour",), vectors=True), id="columns"),
        pytest.param(SearchOptions(space="default", k=50, filter=RED, attributes=("colour",)), id="filter"),
        pytest.param(SearchOptions("default", 9, exclusions=LEFT_OUT, over_fetch=2.5, ef=32), id="excluded"),
        pytest.param(SearchOptions(space="default", k=5, target_recall=0.9), id="recall"),
    ],
)
async def test_searches_are_the_same(shard: Shard, stub: ShardStub, options: SearchOptions) -> None:
    queries = _unit(3)

    near, far = await shard.search(queries, options), await stub.search(queries, options)

    assert list(near.ids) == list(far.ids)
    assert len(far.ids) > 0
    np.testing.assert_array_equal(near.scores, far.scores)
    np.testing.assert_array_equal(near.offsets, far.offsets)
    assert near.attributes == far.attributes
    assert (near.vectors is None) == (far.vectors is None)
    if near.vectors is not None:
        np.testing.assert_array_equal(near.vectors, far.vectors)
    assert (near.plan, near.version, list(near.excluded)) == (far.plan, far.version, list(far.excluded))


async def test_queries_that_do_not_fit_a_message_go_in_parts_and_keep_what_each_leaves_out(
    shard: Shard, stub: ShardStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_stub, "MAX_REQUEST_BYTES", 1)
    queries, options = _unit(3), SearchOptions("default", 9, exclusions=LEFT_OUT)

    near, far = await shard.search(queries, options), await stub.search(queries, options)

    assert list(near.ids) == list(far.ids)
    np.testing.assert_array_equal(near.offsets, far.offsets)
    assert list(near.excluded) == list(far.excluded)


async def test_rows_and_counts_are_the_same(shard: Shard, stub: ShardStub) -> None:
    for part in (shard, stub):
        assert await part.count(RED) == (sum(item_id[0] == "r" for item_id in IDS), 3)
    near = await shard.fetch(IDS[:4], space="default", attributes=("colour",), vectors=True)
    far = await stub.fetch(IDS[:4], space="default", attributes=("colour",), vectors=True)
    assert near.batch == far.batch
    np.testing.assert_array_equal(near.vectors, far.vectors)
    np.testing.assert_array_equal(near.norms, far.norms)
    near = await shard.page(after="g", limit=7, filter=RED, space="default", attributes=("colour",))
    far = await stub.page(after="g", limit=7, filter=RED, space="default", attributes=("colour",))
    assert near.batch == far.batch
    assert far.batch.num_rows == 7


async def test_a_filter_that_does_not_fit_is_refused_with_the_same_words(shard: Shard, stub: ShardStub) -> None:
    wrong = common_pb2.Filter(existence=common_pb2.Existence(attribute="size")).SerializeToString()
    said = []
    for part in (shard, stub):
        with pytest.raises(UnknownAttribute) as caught:
            await part.search(_unit(1), SearchOptions(space="default", k=1, filter=wrong))
        said.append((str(caught.value), caught.value.field))

    assert said[0] == said[1]


async def test_an_unknown_space_is_refused_with_the_same_words(shard: Shard, stub: ShardStub) -> None:
    said = []
    for part in (shard, stub):
        with pytest.raises(UnknownAttribute) as caught:
            await part.search(_unit(1), SearchOptions(space="other", k=1))
        said.append(str(caught.value))

    assert said[0] == said[1]


async def test_a_pushed_change_is_searched(shard: Shard, stub: ShardStub) -> None:
    await stub.apply(Delta(base_version=3, version=4, upserts=rows(IDS[:1], _unit(2)[1:], version=4), deleted_ids=[]))

    hits = await stub.search(_unit(2)[1:], SearchOptions(space="default", k=1, min_version=4))

    assert hits.version == shard.version == 4
    assert IDS[0] in (await stub.search(_unit(2)[1:], SearchOptions(space="default", k=2))).ids


def _register(shard: Shard, endpoint: Endpoint) -> None:
    servicer = ShardServicer(shard, shard, spec=SPEC, number=1)
    shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)
