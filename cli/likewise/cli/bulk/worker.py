"""One worker of a bulk ingest: reads a unit, encodes images on the cluster's encoders, writes Lance files."""

import asyncio
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from likewise.cli.bulk.plan import Unit
from likewise.cli.bulk.progress_file import Bad, Outcome
from likewise.cli.bulk.reading import stored_rows, vector_rows
from likewise.client.cli.sources import Columns, image_problem
from likewise.server import content, spaces
from likewise.server.cluster.router import Routing
from likewise.server.errors import FailedPrecondition, InvalidRequest, Overloaded
from likewise.server.protocols import Models
from likewise.shards import bulk, protocols
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec

_BATCH: Final = 32
_BATCHES: Final = 4
"""Images of one call to the encoders, and calls of one worker under way; encoders make their own batches of them."""

_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What all units of an ingest have in common.

    Attributes:
        spec: The gallery.
        uri: Its dataset.
        controller: Of the cluster whose encoders are used; "" without one.
        columns: Which column of a Parquet file means what.
    """

    spec: GallerySpec
    uri: str
    controller: str
    columns: Columns


class UnitWriter:
    """Writes units, one at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routing: Routing | None = None

    def write(self, unit: Unit) -> Outcome:
        """Write a unit's good rows; nobody sees them before the commit."""
        table, bad = self._images(unit) if unit.names else self._vectors(unit)
        fragments: Sequence[str] = ()
        if table.num_rows:
            fragments = bulk.write(table, self._job.spec, uri=self._job.uri, first_stamp=unit.first_stamp)
        return Outcome(unit.number, table.num_rows, tuple(fragments), tuple(bad))

    def _vectors(self, unit: Unit) -> tuple[pa.Table, list[Bad]]:
        columns = self._job.columns
        names = None if columns.attributes is None else [columns.id, columns.vector, *columns.attributes]
        table = pq.ParquetFile(unit.path).read_row_groups(list(unit.groups), columns=names)
        good, reasons = vector_rows(table, self._job.spec, columns)
        bad = [Bad(f"{unit.path}, row {unit.first_row + row}", why) for row, why in sorted(reasons.items())]
        return good, bad

    def _images(self, unit: Unit) -> tuple[pa.Table, list[Bad]]:
        folder = Path(unit.path)
        bad = [Bad(str(folder / name), why) for name in unit.names if (why := image_problem(folder / name))]
        refused = {one.place for one in bad}
        names = [name for name in unit.names if str(folder / name) not in refused]
        images = [(folder / name).read_bytes() for name in names]
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        vectors, wrong = self._loop.run_until_complete(self._encoded(images))
        bad.extend(Bad(str(folder / names[row]), why) for row, why in sorted(wrong.items()))
        good = [row for row in range(len(names)) if row not in wrong]
        ids = pa.array([names[row] for row in good], pa.string())
        digests = content.of_images([images[row] for row in good])
        return stored_rows(ids, vectors[good], self._job.spec, digests, {}), bad

    async def _encoded(self, images: Sequence[bytes]) -> tuple[F32, dict[int, str]]:
        """(n, dim) raw vectors, and what is wrong with the images that have none."""
        if self._routing is None:
            routing = Routing(self._resolve)
            await routing.start(timeout_s=_START_S)
            self._routing = routing
        models = self._routing.models
        vectors = np.zeros((len(images), self._job.spec.space().dim), np.float32)
        wrong: dict[int, str] = {}
        turns = asyncio.Semaphore(_BATCHES)

        async def encode(start: int) -> None:
            async with turns:
                rows = list(range(start, min(start + _BATCH, len(images))))
                while rows:
                    try:
                        vectors[rows] = await encode_images(models, self._job.spec, [images[row] for row in rows])
                        return
                    except InvalidRequest as error:
                        position = error.field.removeprefix("[").partition("]")[0]
                        if not position.isdecimal():
                            raise
                        wrong[rows.pop(int(position))] = str(error)

        async with asyncio.TaskGroup() as tasks:
            for start in range(0, len(images), _BATCH):
                tasks.create_task(encode(start))
        return vectors, wrong

    async def _resolve(self) -> str:
        return self._job.controller


def write_unit(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """Write {"unit": JSON of a `Unit`}; returns {"outcome": JSON of an `Outcome`}. For `bulk_tasks.run_units`."""
    fields = json.loads(row["unit"])
    unit = Unit(**fields | {"groups": tuple(fields["groups"]), "names": tuple(fields["names"])})
    return {"outcome": json.dumps(asdict(_writer(job).write(unit)))}


@functools.lru_cache(maxsize=1)
def _writer(job: Job) -> UnitWriter:
    """This process's writer, which stays connected from one unit to the next."""
    return UnitWriter(job)


async def encode_images(models: Models, spec: GallerySpec, images: Sequence[bytes]) -> F32:
    """(n, dim) raw vectors of images in the gallery's space; comes back while the encoders' queues are full.

    Raises:
        InvalidRequest: If an image cannot be read; `field` is "[i]".
        FailedPrecondition: If the gallery has no encoder of images.
    """
    fitting = spaces.fit(models, spec.space(), spec)
    if fitting is None or fitting.family.image is None:
        raise FailedPrecondition(f"gallery {spec.name!r} has no encoder of images", reason="NO_ENCODER")
    while True:
        try:
            with fitting.family.lease():
                return fitting.taken((await fitting.family.image.encode(images)).vectors)
        except (Overloaded, protocols.Overloaded) as error:
            await asyncio.sleep(error.retry_after_s or 0.1)
