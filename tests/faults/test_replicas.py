"""Processes of shards that are killed or frozen while calls go on: what replicas hide, what is said without."""

import contextlib
from collections.abc import Iterator

import pytest
from tests.faults.attack import Callers, Cluster, frozen, kill, vectors, wait_until

from likewise.client import Client, DeadlineExceeded, Gallery, Hits, Unavailable
from likewise.shards.spec import shard_hash

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROWS = 400
QUERY = vectors(1, 9)[0]
LATE = [f"late-{i}" for i in range(20)]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address) as client:
        yield client


@contextlib.contextmanager
def _gallery(client: Client, name: str, replicas: int) -> Iterator[Gallery]:
    gallery = client.create_gallery(name, dim=16, shards=2, replicas=replicas)
    try:
        gallery.upsert([f"i{row:04d}" for row in range(ROWS)], vectors=vectors(ROWS))
        gallery.count()  # a replica of every shard has them then, for callers without this client's token too
        yield gallery
    finally:
        client.delete_gallery(name)


def _addresses(gallery: Gallery) -> list[list[str]]:
    return [[replica.address for replica in shard.replicas] for shard in gallery.stats().shards]


def _whole(gallery: Gallery, replicas: int) -> bool:
    """Whether every replica is up, answers and has the newest version."""
    shards = gallery.stats().shards
    found = [[(one.state, one.lag) for one in shard.replicas] for shard in shards]
    return all(len(one) == replicas and {lag for state, lag in one if state != "silent"} == {0} for one in found)


def test_with_two_replicas_neither_a_killed_nor_a_frozen_one_fails_a_search(client: Client) -> None:
    with _gallery(client, "copied", 2) as gallery:
        wait_until(lambda: _whole(gallery, 2))
        with Callers(client, "copied").calling() as callers:
            callers.wait_for(20)
            (killed, _), (_, stopped) = _addresses(gallery)
            kill(killed)
            callers.wait_for(50)
            with frozen(stopped):
                callers.wait_for(50)
            gallery.upsert(["late"], vectors=QUERY[None])  # whoever is starting misses the push
            wait_until(lambda: _whole(gallery, 2))

    assert callers.failures == []
    assert callers.answered >= 120


def test_a_live_gallery_gains_and_loses_replicas_without_failing_a_search(client: Client) -> None:
    with _gallery(client, "growing", 1) as gallery, Callers(client, "growing").calling() as callers:
        before = _addresses(gallery)
        grown = gallery.update(replicas=2).replicas, _addresses(gallery)
        shrunk = gallery.update(replicas=1).replicas, _addresses(gallery)
        callers.wait_for(20)

    assert [grown[0], shrunk[0]] == [2, 1]
    assert [len(shard) for shard in grown[1]] == [2, 2]
    assert all(set(old) < set(new) for old, new in zip(before, grown[1], strict=True))
    assert shrunk[1] == before  # the first replicas are the same processes as ever
    assert callers.failures == []


def test_with_one_replica_the_rest_answers_where_allowed_and_the_shard_is_named_otherwise(
    client: Client, cluster: Cluster
) -> None:
    with (
        _gallery(client, "single", 1) as gallery,
        Client(cluster.address, options=[("grpc.enable_retries", 0)]) as once,
    ):
        impatient = once.gallery("single")
        _, missing = (shard.live for shard in gallery.stats().shards)
        assert impatient.search(vector=QUERY, k=5).coverage.items_total == ROWS  # the router knows each shard's size
        ((_,), (address,)) = _addresses(gallery)

        with frozen(address):
            gallery.upsert(LATE, vectors=vectors(len(LATE)))  # acknowledged by the writer, whoever serves them
            slow = _in_time(gallery)
            with pytest.raises(DeadlineExceeded):
                impatient.search(vector=QUERY, k=5, timeout=1)
        kill(address)
        rest = gallery.search(vector=QUERY, k=5, min_coverage=0.1, timeout=10)
        with pytest.raises(Unavailable) as refused:
            impatient.search(vector=QUERY, k=5, timeout=10)
        wait_until(lambda: _whole(gallery, 1))

        missing += sum(shard_hash(item) % 2 for item in LATE)
        for answer, reason in ((slow, "SHARD_TIMEOUT"), (rest, "SHARD_UNAVAILABLE")):
            coverage = answer.coverage
            assert (coverage.items_searched, coverage.items_total) == (ROWS + len(LATE) - missing, ROWS + len(LATE))
            (lost,) = coverage.degradations
            assert (lost.reason, lost.items, list(lost.shards)) == (reason, missing, [1])
        assert "shard 1 of gallery 'single'" in str(refused.value)


def _in_time(gallery: Gallery) -> Hits:
    """The first answer within its deadline: on a busy machine the tenth of a second kept for replying may not do."""
    for _ in range(5):
        with contextlib.suppress(DeadlineExceeded):
            return gallery.search(vector=QUERY, k=5, min_coverage=0.1, timeout=2)
    raise AssertionError("a frozen shard holds up every search")
