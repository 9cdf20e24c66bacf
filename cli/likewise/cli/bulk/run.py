"""A bulk ingest from its plan to its commit."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from likewise.cli.bulk.plan import Plan, Unit, blocks, make_plan, stamped
from likewise.cli.bulk.progress_file import Bad, Header, Outcome, ProgressFile, outcome_of, unfinished
from likewise.cli.bulk.worker import Job, write_unit
from likewise.client.cli.sources import Columns
from likewise.client.errors import FailedPrecondition, InvalidArgument
from likewise.client.rpc import translated
from likewise.internal.v1 import bulk_service_pb2 as pb
from likewise.internal.v1 import bulk_service_pb2_grpc as pb_grpc
from likewise.shards import spec as specs
from likewise.shards.bulk import BLOCK_STAMPS
from likewise.v1 import gallery_service_pb2
from likewise.wire import MAX_MESSAGE_BYTES

_SHOWN_BAD: Final = 20
_COMMITTED: Final = "FRAGMENTS_COMMITTED"
_STALE: Final = ("FRAGMENTS_MISSING", "GALLERY_CHANGED")

RunUnits = Callable[[Job, Sequence[Unit]], Iterator[Outcome]]
"""Writes units somewhere and yields outcomes as they come; those that had not begun when it is closed are given up."""


class Bulk(Protocol):
    """A server's `BulkService`."""

    def begin(self, gallery: str, rows: int) -> pb.BeginBulkResponse:
        """See the proto."""
        ...

    def commit(self, request: pb.CommitBulkRequest) -> pb.CommitBulkResponse:
        """See the proto."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a bulk ingest did.

    Attributes:
        gallery: Its name.
        stored: Distinct ids stored.
        resumed: Rows that an earlier run had written.
        bad: Rows left out.
        version: From which the rows are visible.
        seconds: This run took, the commit included.
        commit_seconds: Of them the commit.
    """

    gallery: str
    stored: int
    resumed: int
    bad: tuple[Bad, ...]
    version: int
    seconds: float
    commit_seconds: float


@dataclass(frozen=True, slots=True)
class Options:
    """How a bulk ingest runs.

    Attributes:
        columns: Which column of a Parquet file means what.
        max_bad: Share of the rows that may be left out, 0 to 1.
        progress: File that says what is written already.
    """

    columns: Columns
    max_bad: float
    progress: Path


def ingest(
    bulk: Bulk,
    run_units: RunUnits,
    gallery: str,
    source: Path,
    options: Options,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Write a source's rows side by side, then commit them together.

    Args:
        bulk: The server.
        run_units: Where the work is done.
        gallery: Its name.
        source: See `make_plan`.
        options: How.
        report: Told (rows done, rows in all).

    Raises:
        InvalidArgument: If the source cannot be read, or more rows are bad than may be; nothing is stored.
        LikewiseError: What the server says.
    """
    began = time.perf_counter()
    plan = make_plan(source, options.columns.vector)
    file = ProgressFile(options.progress)
    header, job, done = _begun(bulk, gallery, plan, file, options.columns)
    if plan.kind == "images" and not job.controller:
        raise InvalidArgument(
            "images are encoded by the encoders of a cluster, and this server has none: start it with --ray, or leave "
            "--ray out here",
            field="ray",
        )
    resumed = sum(outcome.rows for outcome in done.values())
    units = stamped(plan.units, header.first_stamps)
    most_bad = int(options.max_bad * plan.rows)
    report(resumed, plan.rows)
    for outcome in run_units(job, unfinished(units, done)):
        file.finished(outcome)
        done[outcome.number] = outcome
        _refuse(done, most_bad, plan.rows)
        report(sum(one.rows for one in done.values()), plan.rows)
    _refuse(done, most_bad, plan.rows)
    outcomes = [done[unit.number] for unit in units]
    committing = time.perf_counter()
    answer = _commit(bulk, gallery, header, outcomes, file)
    now = time.perf_counter()
    file.remove()
    bad = tuple(one for outcome in outcomes for one in outcome.bad)
    return Result(gallery, answer.upserted, resumed, bad, answer.version, now - began, now - committing)


def progress_path(gallery: str, source: Path) -> Path:
    """Where the progress of an ingest is kept unless somebody says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{gallery}\0{source.absolute()}".encode()).hexdigest()[:32]
    return cache / "likewise" / "ingest" / f"{name}.jsonl"


def _begun(
    bulk: Bulk, gallery: str, plan: Plan, file: ProgressFile, columns: Columns
) -> tuple[Header, Job, dict[int, Outcome]]:
    """What an earlier run left, if it was of the same rows for the same gallery; else a fresh start."""
    told = bulk.begin(gallery, 0)
    identity = [told.gallery.gallery_id, told.uri, plan.fingerprint, *map(str, asdict(columns).values())]
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()
    found = file.read(key)
    if found is None:
        lent = bulk.begin(gallery, len(blocks(plan.units)) * BLOCK_STAMPS)
        packed = lent.gallery.SerializeToString().hex()
        found = Header(uuid.uuid4().hex, key, packed, lent.uri, tuple(lent.first_stamps)), {}
        file.begin(found[0])
    header, done = found
    spec = specs.from_message(gallery_service_pb2.Gallery.FromString(bytes.fromhex(header.gallery)))
    return header, Job(spec, header.uri, told.controller, columns), done


def _refuse(done: Mapping[int, Outcome], most: int, rows: int) -> None:
    bad = [one for number in sorted(done) for one in done[number].bad]
    if len(bad) <= most:
        return
    shown = "".join(f"\n  {one.place}: {one.reason}" for one in bad[:_SHOWN_BAD])
    more = f"\n  ... and {len(bad) - _SHOWN_BAD:,} more" if len(bad) > _SHOWN_BAD else ""
    raise InvalidArgument(
        f"{len(bad):,} of {rows:,} rows cannot be stored, at most {most:,} may be left out (--max-bad); "
        f"nothing is stored:{shown}{more}"
    )


def _commit(
    bulk: Bulk, gallery: str, header: Header, outcomes: Sequence[Outcome], file: ProgressFile
) -> pb.CommitBulkResponse:
    request = pb.CommitBulkRequest(
        gallery=gallery,
        written_for=gallery_service_pb2.Gallery.FromString(bytes.fromhex(header.gallery)),
        ingest_id=header.ingest_id,
        fragments=[fragment for outcome in outcomes for fragment in outcome.fragments],
    )
    try:
        return bulk.commit(request)
    except FailedPrecondition as error:
        if error.reason == _COMMITTED:
            # By an earlier run that did not live to hear of it; so long ago that only the rows tell.
            return pb.CommitBulkResponse(upserted=sum(outcome.rows for outcome in outcomes))
        if error.reason in _STALE:
            file.remove()
            error.add_note("what was written so far is of no use any more; run it again to begin anew")
        raise


class Server:
    """`Bulk` over a channel."""

    def __init__(self, address: str, channel: grpc.Channel) -> None:
        self._address = address
        self._stub: Any = pb_grpc.BulkServiceStub(channel)

    def begin(self, gallery: str, rows: int) -> pb.BeginBulkResponse:
        """See `Bulk.begin`."""
        answer: pb.BeginBulkResponse = self._call(self._stub.Begin, pb.BeginBulkRequest(gallery=gallery, rows=rows))
        return answer

    def commit(self, request: pb.CommitBulkRequest) -> pb.CommitBulkResponse:
        """See `Bulk.commit`."""
        answer: pb.CommitBulkResponse = self._call(self._stub.Commit, request)
        return answer

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request)
        except grpc.RpcError as error:
            raise translated(error, "", self._address) from error


@contextmanager
def server_at(address: str) -> Iterator[Server]:
    """The server at host:port."""
    options = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Server(address, channel)


def on_ray(workers: int | None) -> RunUnits:
    """Runs units on the Ray cluster that this process is connected to."""

    def run(job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
        # Ray only where it is used.
        from likewise.server.cluster.bulk_tasks import run_units

        if not units:
            return
        rows = [{"unit": json.dumps(asdict(unit))} for unit in units]
        for outcome in run_units(partial(write_unit, job), rows, workers=workers):
            yield outcome_of(json.loads(outcome["outcome"]))

    return run
