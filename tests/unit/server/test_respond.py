"""What a reply says beside its hits, of itself and of all that were answered together."""

import numpy as np
from tests.unit.server.fakes import FakeWriter

from likewise.server.answer import Answer
from likewise.server.compose import as_given
from likewise.server.fan_out import FanOut
from likewise.server.prepared import Prepared
from likewise.server.protocols import GalleryHandle
from likewise.server.respond import respond
from likewise.server.search_forms import Form
from likewise.server.validate_search import Cut, Looking, Partial, SearchForm
from likewise.shards.protocols import Exclusion, SearchOptions, ShardHits
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

SPACE = SpaceSpec("default", 2, "vectors:2")
SPEC = GallerySpec(name="shop", gallery_id="0" * 32, spaces=(SPACE,))
FORM = SearchForm(
    k=3,
    filter=b"",
    cut=Cut(),
    looking=Looking(ef=64),
    attributes=(),
    vectors=False,
    partial=Partial(),
    include_reference=False,
)


def _found(shard: int, *, version: int, search_us: int, queue_us: int) -> ShardHits:
    return ShardHits(
        ids=[],
        scores=np.empty(0, np.float32),
        offsets=np.zeros(3, np.int64),
        attributes=None,
        vectors=None,
        plan=pb.ShardPlan(shard=shard, kind=pb.PLAN_KIND_EXACT, live=10, allowed=10, compared=10),
        version=version,
        queue_us=queue_us,
        search_us=search_us,
        excluded=[1, 0],
    )


def test_a_reply_tells_of_its_own_query_and_of_the_call_that_it_shared() -> None:
    given = as_given(np.array([1.0, 0.0], dtype=np.float32))
    model = common_pb2.ModelRef(name="encoder", version=2, kind="image_encoder")
    made = given._replace(
        composition="image",
        models=(model,),
        warnings=(common_pb2.Warning(code="IMAGE_TRUNCATED"),),
        decode_us=5,
        encode_us=6,
        compose_us=7,
    )
    searches = [
        Prepared(
            handle=GalleryHandle(SPEC, (), FakeWriter(())),
            form=Form(FORM, SPEC),
            space=SPACE,
            composed=composed,
            options=SearchOptions("default", 3),
            request_id=name,
            started=0.0,
            ready=ready_s,
            exclusion=Exclusion(content=content),
        )
        for name, composed, ready_s, content in (("made", made, 1.0, 1), ("given", given, 2.0, 2))
    ]
    found = FanOut(
        answers={0: _found(0, version=5, search_us=8, queue_us=3), 1: _found(1, version=4, search_us=9, queue_us=2)},
        coverage=pb.Coverage(fraction=0.5, items_searched=20, items_total=40, shards_ok=2, shards_total=3),
        elapsed_us=11,
    )
    replies = [pb.SearchResponse(hits=pb.Hits(ids=[name])) for name in "ab"]

    respond(searches, found, [Answer(reply, np.zeros(2, np.int64)) for reply in replies], 12, asked=3.0)

    first, second = replies
    assert [list(reply.hits.ids) for reply in replies] == [["a"], ["b"]]
    assert [reply.request_id for reply in replies] == ["made", "given"]
    assert [list(reply.models) for reply in replies] == [[model], []]
    assert [reply.plan.composition for reply in replies] == ["image", "vector"]
    # What is wrong with the query comes first, then what was left out, then what had no effect.
    assert [warning.code for warning in first.warnings] == ["IMAGE_TRUNCATED", "REFERENCE_EXCLUDED", "PARAMETER_UNUSED"]
    assert first.warnings[1].message.startswith("2 items are exact copies")
    assert [warning.code for warning in second.warnings] == ["PARAMETER_UNUSED"]
    for reply in replies:
        assert reply.version == 4
        assert reply.coverage == found.coverage
        assert [shard.shard for shard in reply.plan.shards] == [0, 1]
        assert reply.plan.summary
        timing = reply.timing
        assert (timing.fan_out_us, timing.shard_max_us, timing.shard_queue_max_us, timing.merge_us) == (11, 9, 3, 12)
        assert timing.total_us > 0
    assert (first.timing.decode_us, first.timing.encode_us, first.timing.compose_us) == (5, 6, 7)
    assert (second.timing.decode_us, second.timing.encode_us, second.timing.compose_us) == (0, 0, 0)
    assert [reply.timing.gather_us for reply in replies] == [2_000_000, 1_000_000]
