"""Which way to search: pure arithmetic over counts, no data.

The sealed index is searched without the filter and its list is filtered afterwards. HNSW with a selector returns k
allowed rows that happen to lie near its walk, which are the wrong ones when the filter leads away from the query
(recall 0.035 was measured), and nothing in its answer shows it. A filtered list does: what it holds are the nearest
rows, so the first k allowed among them are the nearest allowed; if it holds fewer than k, the rows are compared
exactly.
"""

import functools
import math
from typing import Final, NamedTuple

from likewise.v1 import search_service_pb2 as pb

DEFAULT_OVER_FETCH: Final = 1.5
LOSSY_OVER_FETCH: Final = 8.0
"""Where the index holds compressed vectors, its order is rough and more candidates need their exact score."""

DEFAULT_EF: Final = 64
STEADY_EF: Final = 128
"""Where nobody chose a list, it is at least 8 times as deep as what is wanted, up to here: 30,000 x 256 in 50 tight
clusters, queries from outside of them, has a recall@10 of 0.933 with 64 and of 0.987 with 128."""

EXACT_ROWS: Final = {"hnsw": 4_000}
OTHER_EXACT_ROWS: Final = 20_000
"""Filtered rows that are always compared exactly, by kind of index. 4,000 rows take 0.15 ms a query in a batch of 8,
HNSW with a list of 64 takes 0.1 to 0.2 ms, and no list can miss a row. The lists of IVF are gone through for each query
by itself, a row of theirs costs 3 to 4 times as much as one of a block that a batch of 8 to 16 shares."""

ROWS_PER_EF: Final = 40
"""Rows compared exactly in the time that one more candidate of HNSW's list costs, in batches of 8: 0.07 us a row of 512
whose block is kept between searches, 2.7 us a candidate. One query alone compares 10 rows in that time."""

REDUCED_ROWS_PER_EF: Final = 18
"""The same where the index holds reduced vectors and the rows are compared whole: 1.1 us a candidate, 2.2 for one query
alone, which compares 20 rows in that time (50,000 x 512 reduced to 64)."""

BOUNDED_ROWS_PER_EF: Final = 100
"""The same where reduced vectors are compared too (`likewise.shards.scan`). 50,000 x 512 reduced to 32, in batches of
8: 3.4 ns a row, 0.5 us a candidate; one query alone 11 ns and 1.6 us; of 32 1.8 ns and 0.5 us. The wider they are, the
less there is between the two."""

KEPT_ROWS_PER_EF: Final = 300
"""The same where those reduced vectors are kept transposed for a filter. A row more takes 1.9 ns in batches of 8, 2.8
for one query alone, 2.0 in batches of 32; one more in list and depth 0.9, 1.8 and 0.8 us. In a server 16,700 rows had
0.93 of the answers that a list of 31 for the 59 best had: 370 of them for each were too many."""

SCATTERED_COST: Final = 3
"""How much more a row costs where those that pass a filter are too many to be kept side by side: they are copied for
every batch, or all rows compared. 10,000 of 50,000 x 512 took 1.1 us each for one query and 0.15 in batches of 8, where
7,700 kept side by side took 0.1 and 0.05; in batches of 32 the copy costs little."""

EF_PER_DEPTH: Final = 3
"""HNSW's list under a filter as a multiple of the depth wanted from it, where nobody chose one. Recall of the whole
depth, 50,000 x 512 in 1,000 clusters: 0.81 at 1, 0.90 at 2, 0.98 at 4."""

STEADY_FILTERED_EF: Final = 600
"""A list that is as long already need not be longer than one without a filter for as many rows. 30,000 x 512 in 1,000
tight clusters have a recall@100 of 0.978 without a filter, of 0.989 under one of 33 % with 908 candidates (0.9985 with
1,770, which take twice as long) and of 0.994 under one of 20 % with 1,526."""

SLACK: Final = 1.3
"""Depth beyond the expected number of rows to pass over."""

MAX_LIST: Final = 16_384

PARTIAL_GAIN: Final = 1.25
"""How many times as long as the list in an index of a filter's own the present one has to be, for such an index to be
worth its memory. What it saves besides, that nothing is filtered afterwards, is not counted."""


class IndexTraits(NamedTuple):
    """What the planner has to know of a sealed index.

    Attributes:
        kind: "flat", "hnsw", "ivf" or "other".
        rows: Rows in it, tombstones included.
        lossy: Holds compressed vectors.
        reduced: Holds vectors of fewer numbers, and says of what it found how much has to be scored.
        ef: The gallery's own candidate list of HNSW, 0 for one that follows from what is asked.
        nlist: Lists of IVF, else 0.
        nprobe: Default lists visited of IVF, else 0.
        filters: Finds only rows that a filter lets through, so that no more has to be asked for.
        partial: Has the rows of one filter alone; see `likewise.shards.partial_index`.
    """

    kind: str
    rows: int
    lossy: bool = False
    reduced: bool = False
    ef: int = 0
    nlist: int = 0
    nprobe: int = 0
    filters: bool = False
    partial: bool = False


class Demand(NamedTuple):
    """What is asked of a shard.

    Attributes:
        k: Hits a query, rows to be left out afterwards included.
        live: Live rows.
        allowed: Live rows that pass the filter.
        sealed_allowed: Those of them in the sealed index.
        filtered: There is a filter.
        scattered: The allowed rows are too many to be kept side by side.
        loose: What reduced vectors tell of rows is not enough, they have to be compared whole.
        exact: As in `SearchOptions`; False asks for the index even where comparing all is cheaper.
        ef: As in `SearchOptions`.
        nprobe: As in `SearchOptions`.
        over_fetch: As in `SearchOptions`.
    """

    k: int
    live: int
    allowed: int
    sealed_allowed: int
    filtered: bool = False
    scattered: bool = False
    loose: bool = False
    exact: bool | None = None
    ef: int | None = None
    nprobe: int | None = None
    over_fetch: float | None = None


class Choice(NamedTuple):
    """How to search.

    Attributes:
        kind: As reported.
        depth: Rows wanted from the sealed index, before the filter; 0 for the exact plans.
        candidates: Allowed ones of them to be re-scored, at most.
        ef: HNSW's candidate list, 0 when not used.
        nprobe: IVF's lists, 0 when not used.
    """

    kind: pb.PlanKind.ValueType
    depth: int = 0
    candidates: int = 0
    ef: int = 0
    nprobe: int = 0


@functools.lru_cache(maxsize=1_024)
def choose(demand: Demand, index: IndexTraits | None, exact_rows: int | None = None) -> Choice:
    """The plan for a demand; those of a while are kept, as most searches are asked like the ones before.

    Args:
        demand: Counts and wishes.
        index: The sealed index; where it is flat, or None, all rows are compared.
        exact_rows: Filtered rows up to which comparing all is preferred; None for what suits the index.
    """
    if demand.allowed == 0:
        return Choice(pb.PLAN_KIND_EMPTY)
    exact = Choice(pb.PLAN_KIND_EXACT_FILTERED if demand.filtered else pb.PLAN_KIND_EXACT)
    if index is None or index.kind == "flat" or demand.exact or demand.sealed_allowed == 0:
        return exact
    approximate = _approximate(demand, index)
    if approximate.depth >= index.rows or max(approximate.depth, approximate.ef) > MAX_LIST:
        return exact
    if demand.exact is None:
        # The fresh rows are compared one by one in either case.
        cost = demand.sealed_allowed * (SCATTERED_COST if demand.scattered else 1)
        few = EXACT_ROWS.get(index.kind, OTHER_EXACT_ROWS) if exact_rows is None else exact_rows
        if demand.filtered and cost <= few:
            return exact
        kept = demand.filtered and not demand.scattered
        if cost <= _cost_in_rows(approximate, index, kept=kept, loose=demand.loose):
            return exact
    return approximate


@functools.lru_cache(maxsize=1_024)
def partial_pays(demand: Demand, index: IndexTraits, exact_rows: int | None = None) -> bool:
    """Whether an index over the allowed rows alone would answer in clearly less time than what is chosen now."""
    if not demand.filtered or index.kind != "hnsw" or not index.reduced or demand.sealed_allowed == index.rows:
        return False
    alone = choose(demand, index._replace(rows=demand.sealed_allowed, partial=True), exact_rows)
    if not alone.depth:
        return False
    now = choose(demand, index, exact_rows)
    if now.depth:
        effort = _listed(now)
    elif demand.scattered:
        effort = demand.sealed_allowed * SCATTERED_COST / BOUNDED_ROWS_PER_EF
    else:
        effort = demand.sealed_allowed / KEPT_ROWS_PER_EF
    return PARTIAL_GAIN * _listed(alone) <= effort


def _approximate(demand: Demand, index: IndexTraits) -> Choice:
    over_fetch = demand.over_fetch or (LOSSY_OVER_FETCH if index.lossy else DEFAULT_OVER_FETCH)
    wanted = min(max(math.ceil(demand.k * over_fetch), demand.k + 4), demand.sealed_allowed)
    share = 1.0 if index.filters else demand.sealed_allowed / index.rows
    depth = wanted if share == 1.0 else math.ceil(wanted / share * SLACK)
    depth = min(depth, index.rows)
    kind = pb.PLAN_KIND_ANN_FILTERED if demand.filtered else pb.PLAN_KIND_ANN
    if index.kind == "hnsw":
        chosen = demand.ef or index.ef
        if chosen:
            # Of rows that may be hits: under a filter the list is longer by those that it passes over.
            ef = max(math.ceil(chosen / share), _least_ef(demand.k, depth, index))
        else:
            ef = default_ef(wanted) if share == 1.0 else _filtered_ef(wanted, share, depth)
        if not index.reduced:
            return Choice(kind, depth, wanted, ef=ef)
        # All that was found: how much of it is scored follows from how much of each query the reduction leaves out.
        depth = max(depth, ef)
        return Choice(kind, depth, max(wanted, math.floor(depth * share)), ef=ef)
    if index.kind == "ivf":
        nprobe = demand.nprobe or index.nprobe
        if share < 1.0:
            lists_of_depth = math.ceil(4 * depth * index.nlist / index.rows)
            nprobe = max(math.ceil(nprobe * math.sqrt(1.0 / share)), lists_of_depth)
        return Choice(kind, depth, wanted, nprobe=min(nprobe, index.nlist))
    return Choice(kind, depth, wanted)


def _least_ef(k: int, depth: int, index: IndexTraits) -> int:
    """The shortest list where somebody chose one: k rows.

    What is wanted beyond it, so that k are left, are the best of the rows that the walk has met, many times as many as
    its list holds. 50,000 x 512 reduced to 32, k = 10 under 33 %, the 59 best: a recall of 0.990 with a list of 31, of
    0.962 with one of 18, which takes four fifths of the time, and of 0.999 with one of 59, which takes 1.4 times as
    long. The order of compressed vectors is too rough for that: all that is wanted of these has to be in the list. And
    where nothing is filtered afterwards, a list of all that is wanted takes no longer than one of k: 16,900 rows alone
    have a recall of 0.991 with 15 and of 0.972 with 10.
    """
    return depth if index.lossy or index.partial else k


def _filtered_ef(wanted: int, share: float, depth: int) -> int:
    steady = min(EF_PER_DEPTH * depth, STEADY_FILTERED_EF)
    return max(default_ef(math.ceil(wanted / share)), steady, depth)


def default_ef(depth: int) -> int:
    """HNSW's list for a depth where neither the caller nor the gallery chose one."""
    return max(DEFAULT_EF, 2 * depth, min(8 * depth, STEADY_EF))


def _cost_in_rows(choice: Choice, index: IndexTraits, *, kept: bool, loose: bool) -> float:
    """Rows side by side that could be compared exactly in the time of an approximate search."""
    if index.kind == "hnsw":
        listed = _listed(choice)
        if not index.reduced:
            return ROWS_PER_EF * listed
        if loose:
            return REDUCED_ROWS_PER_EF * listed
        return (KEPT_ROWS_PER_EF if kept else BOUNDED_ROWS_PER_EF) * listed
    if index.kind == "ivf":
        return index.rows * choice.nprobe / index.nlist
    return choice.depth


def _listed(choice: Choice) -> float:
    """Length of HNSW's list; a row that is wanted beyond it costs a good half of one in it."""
    return (choice.ef + max(choice.ef, choice.depth)) / 2
