"""One gallery under one sequence of operations, compared with its oracle after each."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from tests.faults import operations, reads
from tests.faults.keeper import Keeper
from tests.faults.model import GalleryModel
from tests.faults.operations import Delete, DeleteWhere, Operation, Reshape, Restart, Upsert, Write, item_id
from tests.faults.tally import Tally

from likewise.client import Gallery, LikewiseError

BULK: Final = 1_000
"""Rows of one write when the gallery is filled."""

MIN_RECALL: Final = 0.5
"""Of a new index over random vectors, whose neighbours are hard to find: 0.888 was seen of IVF, 0.9 is the default."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which gallery a lane has; its place in `PLANS` is its number."""

    name: str
    index: str
    shards: int


PLANS: Final = (Plan("flat", "flat", 1), Plan("graph", "hnsw", 2), Plan("spread", "auto", 4))


class Lane:
    """Operations 0 to `count` - 1 of lane `number`, one after the other.

    Args:
        keeper: The server, shared with the other lanes: a restart that one asks for hits all of them.
        number: Which of `PLANS`.
        seed: Of the operations.
        count: How many.
        until: When to end all the same, monotonic seconds.
        failed: Set when a lane fails; the others then stop.
    """

    def __init__(
        self, keeper: Keeper, number: int, *, seed: int, count: int, until: float, failed: threading.Event
    ) -> None:
        self.tally = Tally()
        self._keeper = keeper
        self._number = number
        self._plan = PLANS[number]
        self._seed = seed
        self._count = count
        self._until = until
        self._failed = failed
        self._model = GalleryModel()
        self._in_doubt: GalleryModel | None = None
        self._generation = -1
        self._gallery: Gallery

    def run(self) -> None:
        """Do them all.

        Raises:
            AssertionError: At the first answer that is not the oracle's; it says how to repeat it.
        """
        done = -1
        try:
            self._fill()
            for done in range(self._count):
                if self._failed.is_set():
                    return
                if time.monotonic() >= self._until:
                    break
                chosen = operations.operation(self._seed, self._number, done)
                self._do(chosen)
                self.tally.operations[type(chosen).__name__] += 1
            self._generation = -1
            self._adopt()  # once more, whole
        except BaseException as failure:
            self._failed.set()
            raise AssertionError(self._account(done, failure)) from failure

    def _account(self, number: int, failure: BaseException) -> str:
        what = operations.operation(self._seed, self._number, number) if number >= 0 else "filling the gallery"
        log = "\n".join(self._keeper.log()[-20:])
        return (
            f"gallery {self._plan.name!r}, seed {self._seed}, operation {number}: {type(failure).__name__}: {failure}\n"
            f"the operation was {what}\nrepeat it with\n  FAULTS_SEED={self._seed} FAULTS_GALLERY={self._plan.name} "
            f"FAULTS_OPERATIONS={number + 1} pytest tests/faults/test_model.py\nthe server's last words:\n{log}"
        )

    def _fill(self) -> None:
        self._generation, client = self._keeper.current()
        plan = self._plan
        self._gallery = client.create_gallery(
            plan.name, dim=operations.DIM, attributes=operations.ATTRIBUTES, index=plan.index, shards=plan.shards
        )
        rows = operations.first_rows(self._seed, self._number)
        self._write(Upsert(rows))
        self._gallery.wait_until_ready(timeout=120)

    def _do(self, chosen: Operation) -> None:
        match chosen:
            case Restart(how, during, delay_s):
                self._restart(how, during, delay_s)
            case Reshape(index, shards):
                self._reshape(index, shards)
            case Upsert() | Delete() | DeleteWhere():
                self._write(chosen)
            case read:
                while True:
                    generation = self._adopt()
                    try:
                        return reads.check_read(self._gallery, self._model, read, self.tally)
                    except LikewiseError:
                        if not self._keeper.is_over(generation):
                            raise

    def _write(self, write: Write) -> None:
        """Send a write: it is acknowledged and counts, or a restart cut it off and the store tells what it did."""
        generation = self._adopt()
        after = self._model.copy()
        touched = after.apply(write)
        try:
            said = self._send(write)
        except LikewiseError:
            if not self._keeper.is_over(generation):
                raise
            self._in_doubt = after
            self._adopt()
            return
        assert said == touched, f"the server says {said} rows, there were {touched}"
        self._model = after
        self.tally.acknowledged[type(write).__name__] += 1
        self.tally.rows += touched

    def _send(self, write: Write) -> int:
        match write:
            case Upsert(rows):
                ids = [item_id(slot) for slot in rows.slots.tolist()]
                return self._gallery.upsert(ids, vectors=rows.vectors, attributes=rows.attributes()).upserted
            case Delete(slots):
                return self._gallery.delete([item_id(slot) for slot in slots.tolist()])
            case DeleteWhere(where):
                return self._gallery.delete(where=where.sent())

    def _restart(self, how: str, during: Write | None, delay_s: float) -> None:
        end = threading.Timer(delay_s, self._keeper.restart, args=[how])
        end.start()
        if during is not None:
            self._write(during)
        end.join()
        self._adopt()

    def _reshape(self, index: str | None, shards: int | None) -> None:
        while True:
            generation = self._adopt()
            try:
                info = self._gallery.update(index=index, shards=shards, min_recall=MIN_RECALL)
            except LikewiseError:
                if not self._keeper.is_over(generation):
                    raise
            else:
                assert shards in (None, info.shards)
                return

    def _adopt(self) -> int:
        """The generation of the running server; a new one's gallery is compared whole with the oracle first."""
        while True:
            generation, client = self._keeper.current()
            if generation == self._generation:
                return generation
            gallery = client.gallery(self._plan.name)
            try:
                self._verify(gallery)
            except LikewiseError:
                if not self._keeper.is_over(generation):
                    raise
                continue
            self._generation, self._gallery = generation, gallery
            self._keeper.recovered(generation)

    def _verify(self, gallery: Gallery) -> None:
        """Every acknowledged write is there; one in doubt is there as a whole or not at all."""
        found = reads.differences(gallery, self._model)
        if self._in_doubt is not None:
            if any(found.values()):
                applied = reads.differences(gallery, self._in_doubt)
                assert not any(applied.values()), f"a write is half done: without it {found}, with it {applied}"
                self._model = self._in_doubt
                self.tally.in_doubt["applied"] += 1
            else:
                self.tally.in_doubt["not applied"] += 1
            self._in_doubt = None
        else:
            self.tally.lost += sum(map(len, found.values()))
            assert not any(found.values()), f"the store is not what was acknowledged: {found}"
        assert (count := gallery.count()) == int(self._model.live.sum()), f"{count} items are counted"
        self.tally.verified += 1
