import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.shards.planner import EXACT_ROWS, OTHER_EXACT_ROWS, SLACK, Demand, IndexTraits, choose, partial_pays
from likewise.v1 import search_service_pb2 as pb

HNSW = IndexTraits("hnsw", rows=1_000_000)
IVF = IndexTraits("ivf", rows=1_000_000, nlist=4_000, nprobe=250)

COUNTS = st.integers(0, 2_000_000)


@st.composite
def demands(draw: st.DrawFn) -> tuple[Demand, IndexTraits | None]:
    rows = draw(st.integers(1, 2_000_000))
    live = draw(COUNTS)
    allowed = draw(st.integers(0, live))
    sealed_allowed = draw(st.integers(0, min(rows, allowed)))
    demand = Demand(
        k=draw(st.integers(1, 10_064)),
        live=live,
        allowed=allowed,
        sealed_allowed=sealed_allowed,
        filtered=draw(st.booleans()),
        scattered=draw(st.booleans()),
        loose=draw(st.booleans()),
        exact=draw(st.none() | st.booleans()),
        ef=draw(st.none() | st.integers(1, 65_536)),
        nprobe=draw(st.none() | st.integers(1, 65_536)),
        over_fetch=draw(st.none() | st.floats(1, 100)),
    )
    kind = draw(st.sampled_from(["hnsw", "ivf", "other", "none"]))
    if kind == "none":
        return demand, None
    nlist = draw(st.integers(1, 10_000)) if kind == "ivf" else 0
    lossy, reduced = draw(st.booleans()), draw(st.booleans()) and kind == "hnsw"
    return demand, IndexTraits(kind, rows, lossy=lossy, reduced=reduced, nlist=nlist, nprobe=min(nlist, 8))


@given(demands())
def test_a_plan_can_be_carried_out_and_is_named_for_what_it_does(case: tuple[Demand, IndexTraits | None]) -> None:
    demand, index = case

    choice = choose(demand, index)

    if demand.allowed == 0:
        assert choice.kind == pb.PLAN_KIND_EMPTY
        return
    exact = (pb.PLAN_KIND_EXACT, pb.PLAN_KIND_EXACT_FILTERED)
    approximate = (pb.PLAN_KIND_ANN, pb.PLAN_KIND_ANN_FILTERED)
    assert choice.kind in (exact[demand.filtered], approximate[demand.filtered])
    if choice.kind in exact:
        assert (choice.depth, choice.ef, choice.nprobe) == (0, 0, 0)
        return
    assert index is not None
    assert not demand.exact
    assert min(demand.k, demand.sealed_allowed) <= choice.candidates <= choice.depth < index.rows
    assert (choice.ef > 0) == (index.kind == "hnsw")
    assert choice.ef == 0 or choice.ef >= min(demand.k, demand.sealed_allowed)
    assert choice.nprobe <= index.nlist


def demand(
    allowed: int, *, live: int = 1_000_000, k: int = 10, exact: bool | None = None, ef: int | None = None
) -> Demand:
    return Demand(k=k, live=live, allowed=allowed, sealed_allowed=allowed, filtered=allowed != live, exact=exact, ef=ef)


def test_without_an_index_everything_is_exact() -> None:
    assert choose(demand(1_000_000), None).kind == pb.PLAN_KIND_EXACT
    assert choose(demand(10), None).kind == pb.PLAN_KIND_EXACT_FILTERED


def test_few_allowed_rows_are_compared_exactly_and_many_through_the_index() -> None:
    for index, few in ((HNSW, EXACT_ROWS["hnsw"]), (IVF, OTHER_EXACT_ROWS)):
        assert choose(demand(few), index).kind == pb.PLAN_KIND_EXACT_FILTERED
        assert choose(demand(500_000), index).kind == pb.PLAN_KIND_ANN_FILTERED
        assert choose(demand(1_000_000), index).kind == pb.PLAN_KIND_ANN


@given(demands())
def test_rows_that_are_not_side_by_side_are_never_compared_rather_than_others(
    case: tuple[Demand, IndexTraits | None],
) -> None:
    demand, index = case
    together, scattered = (choose(demand._replace(scattered=each), index) for each in (False, True))

    assert scattered == together or together.kind in (pb.PLAN_KIND_EXACT, pb.PLAN_KIND_EXACT_FILTERED)


def test_a_filter_whose_rows_are_copied_for_each_batch_is_searched_through_the_index_sooner() -> None:
    index = IndexTraits("hnsw", rows=50_000)
    fifth = demand(10_000, live=50_000)

    assert choose(fifth, index).kind == pb.PLAN_KIND_EXACT_FILTERED
    assert choose(fifth._replace(scattered=True), index).kind == pb.PLAN_KIND_ANN_FILTERED


def test_reduced_rows_are_compared_where_whole_ones_would_not_be() -> None:
    whole, reduced = IndexTraits("hnsw", rows=50_000), IndexTraits("hnsw", rows=50_000, reduced=True)
    tenth, third = demand(5_000, live=50_000), demand(16_500, live=50_000)

    assert choose(third, whole).kind == pb.PLAN_KIND_ANN_FILTERED
    assert choose(third, reduced).kind == pb.PLAN_KIND_EXACT_FILTERED
    assert choose(tenth, whole).kind == pb.PLAN_KIND_EXACT_FILTERED
    # A candidate of a reduced index costs less than one of whole vectors.
    assert choose(third._replace(loose=True), reduced).kind == pb.PLAN_KIND_ANN_FILTERED
    assert choose(tenth._replace(loose=True, scattered=True), reduced).kind == pb.PLAN_KIND_ANN_FILTERED


def test_reduced_rows_that_are_kept_for_a_filter_are_compared_sooner_than_those_that_are_not() -> None:
    reduced = IndexTraits("hnsw", rows=50_000, reduced=True)
    fifth = demand(10_000, live=50_000, ef=10)

    assert choose(fifth, reduced).kind == pb.PLAN_KIND_EXACT_FILTERED
    assert choose(fifth._replace(scattered=True), reduced).kind == pb.PLAN_KIND_ANN_FILTERED
    assert choose(fifth._replace(filtered=False), reduced).kind == pb.PLAN_KIND_ANN


def test_the_fewer_rows_pass_the_deeper_the_index_is_asked() -> None:
    half, tenth = choose(demand(500_000), HNSW), choose(demand(100_000), HNSW)

    assert tenth.depth > half.depth > choose(demand(1_000_000), HNSW).depth
    assert tenth.ef > half.ef
    assert choose(demand(300_000), IVF).nprobe > choose(demand(500_000), IVF).nprobe


def test_a_filter_makes_a_long_list_no_longer_than_as_many_rows_without_one() -> None:
    third = [choose(demand(330_000, k=k, exact=False), HNSW) for k in (10, 100)]

    assert [choice.depth for choice in third] == [60, 591]
    assert [choice.ef for choice in third] == [3 * 60, choose(demand(1_000_000, k=303), HNSW).ef]


def test_exact_is_obeyed_and_its_opposite_prefers_the_index() -> None:
    assert choose(demand(1_000_000, exact=True), HNSW).kind == pb.PLAN_KIND_EXACT
    assert choose(demand(10_000, exact=False), HNSW).kind == pb.PLAN_KIND_ANN_FILTERED


def test_a_list_as_long_as_the_index_is_no_list() -> None:
    assert (
        choose(demand(2_000, live=2_000, k=1_900, exact=False), IndexTraits("hnsw", 2_000)).kind == pb.PLAN_KIND_EXACT
    )


def test_a_search_where_all_is_fresh_is_exact() -> None:
    fresh = Demand(k=3, live=10, allowed=10, sealed_allowed=0)

    assert choose(fresh, HNSW).kind == pb.PLAN_KIND_EXACT


def test_a_chosen_candidate_list_is_obeyed_and_an_unchosen_one_follows_k() -> None:
    chosen = Demand(k=10, live=1_000_000, allowed=1_000_000, sealed_allowed=1_000_000, ef=20)

    assert choose(chosen, HNSW).ef == 20
    assert choose(demand(1_000_000), IndexTraits("hnsw", 1_000_000, ef=33)).ef == 33
    assert [choose(demand(1_000_000, k=k), HNSW).ef for k in (1, 10, 100)] == [64, 120, 300]


@pytest.mark.parametrize("ef", [1, 10, 64, 200])
def test_a_chosen_candidate_list_is_of_those_that_a_filter_lets_through(ef: int) -> None:
    half = choose(demand(500_000, ef=ef), HNSW)
    without = choose(demand(1_000_000, ef=ef), HNSW)

    assert half.kind == pb.PLAN_KIND_ANN_FILTERED
    assert half.ef == max(2 * ef, 10)
    assert half.depth == math.ceil(2 * 15 * SLACK)  # enough for k rows to pass, however short the list
    assert without.ef == max(ef, 10)
    assert without.depth == 15
    by_gallery = choose(demand(500_000), IndexTraits("hnsw", rows=HNSW.rows, ef=ef))
    assert by_gallery == half


def test_all_that_is_wanted_of_compressed_vectors_is_in_the_list() -> None:
    half = choose(demand(500_000, ef=10), IndexTraits("hnsw", rows=1_000_000, lossy=True))

    assert half.ef == half.depth == math.ceil(2 * 80 * SLACK)


def test_compressed_vectors_bring_more_candidates() -> None:
    lossy = IndexTraits("ivf", rows=1_000_000, lossy=True, nlist=4_000, nprobe=250)

    assert choose(demand(1_000_000), lossy).candidates == 80
    assert choose(demand(1_000_000), IVF).candidates == 15


def test_the_whole_list_of_a_reduced_index_is_at_hand_for_what_has_to_be_scored() -> None:
    reduced = IndexTraits("hnsw", rows=1_000_000, reduced=True)

    everything, half = choose(demand(1_000_000), reduced), choose(demand(500_000), reduced)

    assert (everything.depth, everything.candidates, everything.ef) == (120, 120, 120)
    assert half.ef == half.depth == choose(demand(500_000), HNSW).ef
    assert half.candidates == half.depth // 2


def test_a_third_of_fifty_thousand_rows_is_searched_through_hnsw_and_a_hundredth_is_compared() -> None:
    index = IndexTraits("hnsw", rows=50_000)

    assert choose(demand(16_700, live=50_000), index).kind == pb.PLAN_KIND_ANN_FILTERED
    assert choose(demand(500, live=50_000), index).kind == pb.PLAN_KIND_EXACT_FILTERED


@given(demands())
def test_an_index_of_its_own_pays_only_where_the_plan_with_it_looks_at_less(
    case: tuple[Demand, IndexTraits | None],
) -> None:
    demand, index = case
    if index is None or not partial_pays(demand, index):
        return

    alone = index._replace(rows=demand.sealed_allowed, partial=True)
    now, then = choose(demand, index), choose(demand, alone)

    assert demand.filtered
    assert not demand.exact
    assert (index.kind, index.reduced) == ("hnsw", True)
    assert then.kind == pb.PLAN_KIND_ANN_FILTERED
    assert then.ef >= min(demand.k, demand.sealed_allowed)
    if now.depth:
        assert then.ef + max(then.ef, then.depth) < now.ef + max(now.ef, now.depth)


@pytest.mark.parametrize(
    ("allowed", "ef", "pays"),
    [
        pytest.param(330_000, None, True, id="a third, a list of 350"),
        pytest.param(330_000, 20, True, id="a third, a list of 60"),
        pytest.param(100_000, None, True, id="rows that are compared, more than a list is worth"),
        pytest.param(20_000, None, False, id="few rows that are compared"),
        pytest.param(20_000, 10, True, id="few rows for a short list"),
        pytest.param(900_000, 64, False, id="nearly all rows"),
    ],
)
def test_an_index_of_its_own_pays_for(allowed: int, ef: int | None, pays: bool) -> None:
    index = IndexTraits("hnsw", rows=1_000_000, reduced=True)
    demand = Demand(10, 1_000_000, allowed, allowed, filtered=True, ef=ef)

    assert partial_pays(demand, index) == pays


@pytest.mark.parametrize(("ef", "expected"), [(1, 15), (15, 15), (40, 40), (None, 120)])
def test_the_list_of_an_index_of_its_own_has_all_that_is_wanted(ef: int | None, expected: int) -> None:
    index = IndexTraits("hnsw", rows=100_000, reduced=True, partial=True)

    choice = choose(Demand(10, 1_000_000, 100_000, 100_000, filtered=True, ef=ef), index)

    assert (choice.ef, choice.depth, choice.candidates) == (expected, expected, expected)
