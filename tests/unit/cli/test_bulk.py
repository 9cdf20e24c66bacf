"""Bulk ingest with its workers in this process, over a real store and writer."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from likewise.cli.bulk import plan as plans
from likewise.cli.bulk.plan import Unit, blocks, make_plan, stamped
from likewise.cli.bulk.progress_file import Outcome
from likewise.cli.bulk.run import Options, Result, ingest
from likewise.cli.bulk.worker import Job, UnitWriter
from likewise.client.cli.sources import Columns
from likewise.client.errors import FailedPrecondition, InvalidArgument
from likewise.internal.v1 import bulk_service_pb2 as pb
from likewise.server.bulk_service import BulkService
from likewise.server.errors import ServiceError
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.server.metrics import Metrics
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec, vector_space_digest
from likewise.v1 import common_pb2

DIM = 4
SPEC = GallerySpec(
    name="g",
    gallery_id="",
    spaces=(SpaceSpec("default", DIM, vector_space_digest(DIM)),),
    attributes=(
        AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_DOUBLE),
        AttributeSpec("seen", common_pb2.ATTRIBUTE_TYPE_TIMESTAMP),
    ),
    shards=2,
)


class Server:
    """A server's bulk service and its galleries, on a loop of their own.

    Attributes:
        lost: The answers of so many commits are lost.
    """

    def __init__(self, folder: Path) -> None:
        self.lost = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.galleries = EmbeddedGalleries(StoreOptions(str(folder / "store")))
        self.wait(self.galleries.open())
        self.wait(self.galleries.create(SPEC))
        self._service = BulkService(galleries=self.galleries, metrics=Metrics(version="0"), controller=lambda: "")

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def begin(self, gallery: str, rows: int) -> pb.BeginBulkResponse:
        answer: pb.BeginBulkResponse = self.wait(
            self._service.Begin(pb.BeginBulkRequest(gallery=gallery, rows=rows), None)
        )
        return answer

    def commit(self, request: pb.CommitBulkRequest) -> pb.CommitBulkResponse:
        try:
            answer: pb.CommitBulkResponse = self.wait(self._service.Commit(request, None))
        except ServiceError as error:
            raise FailedPrecondition(str(error), reason=error.reason) from error
        if self.lost:
            self.lost -= 1
            raise ConnectionError("the answer is lost")
        return answer

    def stored(self) -> dict[str, float | None]:
        """Id -> price, as the shards have it."""
        handle = self.galleries.get("g")
        version = self.wait(handle.writer.version())
        found: dict[str, float | None] = {}
        for shard in handle.shards:
            rows = self.wait(
                shard.page(
                    after="", limit=1000, filter=b"", space="default", attributes=("price",), min_version=version
                )
            )
            found |= dict(zip(rows.batch["id"].to_pylist(), rows.batch["price"].to_pylist(), strict=True))
        return found

    def close(self) -> None:
        self.wait(self.galleries.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", 1)


def _file(path: Path, ids: Sequence[str | None], *, price: Any = 1.0, **columns: Any) -> Path:
    vectors = np.random.default_rng(len(ids)).normal(size=(len(ids), DIM)).astype(np.float32)
    made = {
        "id": ids,
        "vector": list(vectors),
        "price": price if isinstance(price, list) else [price] * len(ids),
        **columns,
    }
    pq.write_table(pa.table(made), path, row_group_size=2)
    return path


class InProcess:
    """Runs units here; stops after `die_after` of them, once.

    Attributes:
        numbers: Units run, in order.
    """

    def __init__(self, die_after: int | None = None) -> None:
        self.numbers: list[int] = []
        self._die_after = die_after

    def __call__(self, job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
        writer = UnitWriter(job)
        for unit in units:
            if len(self.numbers) == self._die_after:
                self._die_after = None
                raise KeyboardInterrupt
            self.numbers.append(unit.number)
            yield writer.write(unit)


def _ingest(server: Server, source: Path, *, run: InProcess | None = None, max_bad: float = 0.0) -> Result:
    options = Options(Columns(), max_bad, source.parent / "progress" / "ingest.jsonl")
    return ingest(server, run or InProcess(), "g", source, options)


def test_rows_of_a_parquet_file_are_stored_in_one_version(server: Server, tmp_path: Path) -> None:
    before = server.begin("g", 0).gallery.version
    done: list[tuple[int, int]] = []
    source = _file(tmp_path / "a.parquet", ["a", "b", "c", "d", "e"])
    options = Options(Columns(), 0.0, tmp_path / "progress.jsonl")

    result = ingest(server, InProcess(), "g", source, options, report=lambda now, all: done.append((now, all)))

    assert (result.stored, result.resumed, result.bad) == (5, 0, ())
    assert result.version == before + 2  # the stamps' and the rows'
    assert server.stored() == dict.fromkeys("abcde", 1.0)
    assert done == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert not (tmp_path / "progress.jsonl").exists()


def test_ids_that_are_there_are_replaced_and_of_an_id_in_two_files_the_last_stays(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    _ingest(server, _file(tmp_path / "before.parquet", ["a", "b"], price=1.0))
    _file(folder / "1.parquet", ["b", "c", "d"], price=2.0)
    _file(folder / "2.parquet", ["d", "e", "e"], price=3.0)

    result = _ingest(server, folder)

    assert result.stored == 4
    assert server.stored() == {"a": 1.0, "b": 2.0, "c": 2.0, "d": 3.0, "e": 3.0}


def test_an_ingest_that_was_killed_goes_on_from_what_was_written(server: Server, tmp_path: Path) -> None:
    source = _file(tmp_path / "a.parquet", list("abcdefgh"))
    with pytest.raises(KeyboardInterrupt):
        _ingest(server, source, run=InProcess(die_after=2))
    assert server.stored() == {}
    again = InProcess()

    result = _ingest(server, source, run=again)

    assert again.numbers == [2, 3]
    assert (result.stored, result.resumed) == (8, 4)
    assert sorted(server.stored()) == list("abcdefgh")


def test_an_ingest_whose_commit_went_unheard_is_not_made_twice(server: Server, tmp_path: Path) -> None:
    source = _file(tmp_path / "a.parquet", ["a", "b", "c"])
    server.lost = 1
    with pytest.raises(ConnectionError):
        _ingest(server, source)
    version = server.begin("g", 0).gallery.version

    result = _ingest(server, source, run=InProcess())

    assert (result.stored, result.version) == (3, version)
    assert server.begin("g", 0).gallery.version == version


def test_a_source_that_changed_is_written_anew(server: Server, tmp_path: Path) -> None:
    source = _file(tmp_path / "a.parquet", ["a", "b", "c", "d"])
    with pytest.raises(KeyboardInterrupt):
        _ingest(server, source, run=InProcess(die_after=1))
    _file(source, ["a", "b", "c", "d", "e"])
    again = InProcess()

    assert _ingest(server, source, run=again).stored == 5
    assert again.numbers == [0, 1, 2]


def test_files_that_are_gone_make_it_begin_anew(server: Server, tmp_path: Path) -> None:
    source = _file(tmp_path / "a.parquet", ["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt):
        _ingest(server, source, run=InProcess(die_after=1))
    for path in (tmp_path / "store" / "g.lance" / "data").iterdir():
        path.unlink()
    with pytest.raises(FailedPrecondition, match="is gone") as caught:
        _ingest(server, source)
    assert "run it again" in caught.value.__notes__[0]

    assert _ingest(server, source).stored == 3


def _bad_file(path: Path) -> Path:
    vectors = [[1.0] * DIM, [1.0] * 3, [0.0] * DIM, [float("nan")] * DIM, None, [2.0] * DIM, [1.0] * DIM, [1.0] * DIM]
    return _file(
        path,
        ["a", "b", "c", "d", "e", "x" * 513, None, "h"],
        vector=vectors,
        price=["1", "2", "3", "4", "5", "6", "7", "dear"],
        seen=["2024-05-01T00:00:00"] * 8,
    )


def test_bad_rows_are_named_with_their_place_and_refuse_it_all(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nothing is stored") as caught:
        _ingest(server, _bad_file(tmp_path / "bad.parquet"))

    assert "bad.parquet, row 2: vector has 3 numbers, the gallery's vectors have 4" in str(caught.value)
    assert server.stored() == {}


def test_bad_rows_up_to_the_allowed_share_are_left_out(server: Server, tmp_path: Path) -> None:
    result = _ingest(server, _bad_file(tmp_path / "bad.parquet"), max_bad=0.9)

    assert server.stored() == {"a": 1.0}
    said = {one.place.rpartition(" ")[2]: one.reason for one in result.bad}
    assert list(said) == ["2", "3", "4", "5", "6", "7", "8"]
    assert "zero" in said["3"]
    assert "not finite" in said["4"]
    assert said["5"] == "vector is missing"
    assert "got 513" in said["6"]
    assert said["7"] == "id is missing"
    assert said["8"].startswith("price: ")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        pytest.param({"size": [1, 2]}, "column 'size' is no attribute of the gallery", id="unknown attribute"),
        pytest.param({"vector": None}, "no column 'vector'", id="no vectors"),
    ],
)
def test_columns_that_do_not_fit_are_refused(server: Server, tmp_path: Path, columns: Any, said: str) -> None:
    source = _file(tmp_path / "a.parquet", ["a", "b"])
    table = pq.read_table(source)
    for name, values in columns.items():
        table = table.drop_columns(["vector"]) if values is None else table.append_column(name, pa.array(values))
    pq.write_table(table, source)

    with pytest.raises(ValueError, match=said):
        _ingest(server, source)


def test_images_need_the_encoders_of_a_cluster(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    with pytest.raises(InvalidArgument, match="start it with --ray"):
        _ingest(server, folder)


def test_units_get_stamps_that_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "BLOCK_STAMPS", 10)
    units = [Unit(number, "f", rows) for number, rows in enumerate((6, 4, 3, 8))]

    made = stamped(units, [1000, 2000, 3000])

    assert [len(block) for block in blocks(units)] == [2, 1, 1]
    assert [unit.first_stamp for unit in made] == [1000, 1006, 2000, 3000]
    with pytest.raises(InvalidArgument, match="11 rows"):
        blocks([Unit(0, "f", 11)])


def test_a_plan_of_images_is_cut_into_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "UNIT_IMAGES", 2)
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"x")

    plan = make_plan(tmp_path, "vector")

    assert (plan.kind, plan.rows) == ("images", 3)
    assert [unit.names for unit in plan.units] == [("a.png", "b.png"), ("c.png",)]
