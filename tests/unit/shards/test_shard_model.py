"""A shard against a dictionary: whatever is written, sealed or restarted, it answers as a plain computation does."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shards.fakes import ATTRIBUTES, MemoryStore, gallery, oracle, unit

from likewise.shards import recipe, seal
from likewise.shards.filter import filter_key
from likewise.shards.merge import merge
from likewise.shards.protocols import Exclusion, SearchOptions, ShardHits
from likewise.shards.shard import Shard
from likewise.shards.spec import IndexSpec
from likewise.v1 import common_pb2 as pb

DIM = 4
KINDS = unit(np.random.default_rng(1).standard_normal((12, DIM)))
COLOURS = [None, "red", "pink", "blue"]
RED = filter_key(
    pb.Filter(
        comparison=pb.Comparison(
            attribute="colour", operator=pb.COMPARISON_OPERATOR_EQUAL, value=pb.Value(string_value="red")
        )
    )
)

WRITES = st.tuples(
    st.just("write"),
    st.dictionaries(st.integers(0, 60), st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=30),
    st.sets(st.integers(0, 60), max_size=10),
)
STEPS = st.one_of(
    WRITES,
    WRITES,
    st.tuples(st.just("search"), st.integers(0, 11), st.integers(1, 70)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("miss"), WRITES),
)


class World:
    def __init__(self, folder: Path, shards: int, kind: str) -> None:
        self.spec = gallery(dim=DIM, shards=shards, index=IndexSpec(kind=kind), attributes=ATTRIBUTES[:1])
        self.store = MemoryStore(self.spec)
        self.folder = folder
        self.items: dict[str, tuple[int, int]] = {}
        self.shards: list[Shard] = []

    async def start(self) -> None:
        self.shards = [
            Shard(self.spec, number, self.store.source(number), cache=self.folder) for number in range(self.spec.shards)
        ]
        await asyncio.gather(*(shard.start() for shard in self.shards))

    async def stop(self) -> None:
        await asyncio.gather(*(shard.close() for shard in self.shards))

    async def write(self, upserts: dict[int, tuple[int, int]], deleted: set[int], *, push: bool) -> None:
        deleted = deleted - upserts.keys()
        ids = [f"i{n}" for n in upserts]
        vectors = KINDS[[kind for kind, _ in upserts.values()]].reshape(-1, DIM)
        colours = [COLOURS[colour] for _, colour in upserts.values()]
        content = [kind for kind, _ in upserts.values()]
        gone = [f"i{n}" for n in deleted]
        delta = self.store.commit(ids, vectors, {"colour": colours}, content=content, deleted=gone)
        self.items |= dict(zip(ids, upserts.values(), strict=True))
        for item_id in gone:
            self.items.pop(item_id, None)
        if push:
            await asyncio.gather(*(shard.apply(delta) for shard in self.shards))

    async def search(self, query: int, options: SearchOptions) -> tuple[list[str], list[ShardHits]]:
        parts = await asyncio.gather(*(shard.search(KINDS[query : query + 1], options) for shard in self.shards))
        merged = merge(parts, options.k)
        return list(merged.ids), parts

    async def check(self, query: int, k: int) -> None:
        ids = sorted(self.items)
        vectors = KINDS[[self.items[i][0] for i in ids]].reshape(-1, DIM)
        colours = [COLOURS[self.items[i][1]] for i in ids]
        newest = self.store.version
        assert k > 0

        found, parts = await self.search(
            query, SearchOptions(space="", k=k, min_version=newest, attributes=("colour",))
        )
        assert found == oracle(ids, vectors, KINDS[query], k)[0]
        for part in parts:
            assert part.attributes is not None
            expected = [COLOURS[self.items[i][1]] for i in part.ids]
            assert part.attributes.column("colour").to_pylist() == expected

        red = [colour == "red" for colour in colours]
        found, _ = await self.search(query, SearchOptions(space="", k=k, min_version=newest, filter=RED))
        assert found == oracle(ids, vectors, KINDS[query], k, allowed=red)[0]

        rough = SearchOptions(space="", k=k, min_version=newest, filter=RED, exact=False)
        found, parts = await self.search(query, rough)
        assert len(found) == len(set(found)) == min(k, sum(red))
        assert set(found) <= {i for i, is_red in zip(ids, red, strict=True) if is_red}
        for part in parts:
            expected = (KINDS[[self.items[i][0] for i in part.ids]].reshape(-1, DIM) @ KINDS[query]).tolist()
            np.testing.assert_allclose(part.scores, expected, atol=1e-6)

        other = [self.items[i][0] != query and i != "i7" for i in ids]
        options = SearchOptions(
            space="", k=k, min_version=newest, exclusions=(Exclusion(("i7", "absent"), query),), vectors=True
        )
        found, parts = await self.search(query, options)
        assert found == oracle(ids, vectors, KINDS[query], k, allowed=other)[0]
        assert sum(part.excluded[0] for part in parts) == sum(self.items[i][0] == query for i in ids)
        for part in parts:
            np.testing.assert_array_equal(part.vectors, KINDS[[self.items[i][0] for i in part.ids]].reshape(-1, DIM))

        counts = [await shard.count(RED, min_version=newest) for shard in self.shards]
        assert sum(count for count, _ in counts) == sum(red)
        pages = [
            await shard.page(after="i3", limit=5, filter=RED, space="", attributes=("colour",)) for shard in self.shards
        ]
        paged = sorted(i for page in pages for i in page.batch.column("id").to_pylist())
        assert paged[:5] == sorted(i for i, is_red in zip(ids, red, strict=True) if is_red and i > "i3")[:5]


@pytest.fixture(autouse=True, scope="module")
def _small_thresholds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "MIN_SEALED_ROWS", 8)
        patch.setattr(seal, "FRESH_ROWS", 4)
        yield


@pytest.mark.parametrize(
    ("shards", "kind"), [(1, "flat"), (1, "HNSW4,Flat"), (2, "IVF2,Flat"), (4, "SQ8"), (8, "flat")]
)
@settings(max_examples=40)
@given(steps=st.lists(STEPS, min_size=3, max_size=16))
def test_a_shard_answers_as_a_dictionary_does(shards: int, kind: str, steps: list[tuple[Any, ...]]) -> None:
    async def run(folder: Path) -> None:
        world = World(folder, shards, kind)
        await world.start()
        try:
            for step in steps:
                match step:
                    case ("write", upserts, deleted):
                        await world.write(upserts, deleted, push=True)
                    case ("miss", (_, upserts, deleted)):
                        await world.write(upserts, deleted, push=False)
                    case ("search", query, k):
                        await world.check(query, k)
                    case ("settle",):
                        await asyncio.gather(*(shard.settled() for shard in world.shards))
                    case ("restart",):
                        await world.stop()
                        await world.start()
            await world.check(0, 10)
            stats = [await shard.stats() for shard in world.shards]
            assert sum(one.live for one in stats) == len(world.items)
        finally:
            await world.stop()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
