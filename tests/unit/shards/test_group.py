from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shards.store_fixtures import prices, rows

from likewise.shards.group import Delete, Upsert, fold

OPERATIONS = st.lists(
    st.one_of(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=1, max_size=4),
        st.sets(st.sampled_from("abcde"), min_size=1, max_size=3),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(operations=OPERATIONS, store=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)))
def test_a_group_does_what_its_requests_would_have_done_one_by_one(
    operations: list[list[tuple[str, int]] | set[str]], store: dict[str, int]
) -> None:
    group = fold([Upsert(rows(op)) if isinstance(op, list) else Delete(sorted(op)) for op in operations])

    model, counts = dict(store), []
    for op in operations:
        if isinstance(op, list):
            model |= dict(op)
            counts.append(len(dict(op)))
        else:
            counts.append(len(op & set(model)))
            model = {key: value for key, value in model.items() if key not in op}
    upserts = prices(group.upserts.to_batches()) if group.upserts is not None else {}
    assert not set(upserts) & set(group.deleted_ids)
    assert {k: v for k, v in (store | upserts).items() if k not in group.deleted_ids} == model
    assert [tally.rows(frozenset(store)) for tally in group.tallies] == counts
