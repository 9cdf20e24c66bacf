"""Items on their way in: encode, normalise, digest, and hand the writer one Arrow batch."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

import pyarrow as pa

from likewise.server import content, spaces, validate
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.protocols import Encoded, Family, GalleryHandle, Models
from likewise.server.validate_items import ItemsInput, items_input, row_field
from likewise.shards import columns
from likewise.shards.protocols import F32, I64
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2
from likewise.v1 import item_service_pb2 as pb

_OFF_LOOP_BYTES: Final = 1 << 16
"""Size of the items from which packing them leaves the event loop: about a tenth of a millisecond of work."""


class Packer:
    """Turns the items of a request into the batch that writers take.

    Args:
        models: Encoders of images and texts.
        executor: Runs the packing of all but small requests.
    """

    def __init__(self, *, models: Models, executor: Executor) -> None:
        self._models = models
        self._executor = executor

    async def pack(
        self, items: pb.Items, handle: GalleryHandle
    ) -> tuple[pa.RecordBatch, tuple[common_pb2.Warning, ...]]:
        """The batch for `Writer.upsert` and what the caller should know about it.

        Raises:
            InvalidRequest: Naming the first bad row or column; nothing is to be stored then.
            FailedPrecondition: If the gallery has no encoder for what was sent, or another space.
            Overloaded: If the encoder's queue is full.
        """
        given = items_input(items, handle.spec)
        encoded = await self._encode(given, handle.spec)
        raw = encoded.vectors if encoded is not None else given.vectors
        assert raw is not None, "items_input requires one kind of content. This is a bug."

        def work() -> pa.RecordBatch:
            return _batch(given, raw, handle.spec)

        small = items.ByteSize() < _OFF_LOOP_BYTES
        batch = work() if small else await asyncio.get_running_loop().run_in_executor(self._executor, work)
        return batch, encoded.warnings if encoded is not None else ()

    async def _encode(self, items: ItemsInput, spec: GallerySpec) -> Encoded | None:
        if items.vectors is not None:
            return None
        fitting = spaces.fit(self._models, items.space, spec)
        family = fitting.family if fitting is not None else None
        encoder = None if family is None else family.image if items.images is not None else family.text
        if fitting is None or encoder is None:
            raise _no_encoder(spec, family, "images" if items.images is not None else "texts")
        try:
            with fitting.family.lease():
                # The encoder was chosen by the kind of the inputs.
                encoded = await encoder.encode(items.images or items.texts or ())  # type: ignore[arg-type]
        except InvalidRequest as error:
            raise _in_row(error, items) from error
        return replace(encoded, vectors=fitting.taken(encoded.vectors))


def _batch(items: ItemsInput, raw: F32, spec: GallerySpec) -> pa.RecordBatch:
    unit, norms = validate.normalised(raw, row_field(items))
    try:
        return columns.items_to_batch(
            spec,
            items.ids,
            attributes=items.attributes,
            vectors={items.space.name: unit},
            norms={items.space.name: norms},
            content=_digests(items, raw),
        )
    except columns.ColumnError as error:
        field = f"items.{error.field}"
        raise InvalidRequest(f"items.{error}", reason="MALFORMED_COLUMN", field=field) from error


def _digests(items: ItemsInput, raw: F32) -> I64:
    if items.images is not None:
        return content.of_images(items.images)
    if items.texts is not None:
        return content.of_texts(items.texts)
    return content.of_vectors(raw)


def _no_encoder(spec: GallerySpec, family: Family | None, what: str) -> FailedPrecondition:
    who = (
        f"gallery {spec.name!r} holds vectors only"
        if family is None
        else f"the models {family.name!r} encode no {what}"
    )
    return FailedPrecondition(f"{who}: send vectors", reason="NO_ENCODER", field=f"items.{what}")


def _in_row(error: InvalidRequest, items: ItemsInput) -> InvalidRequest:
    """The encoder's error about its input i as an error about row i of the request."""
    position = error.field.removeprefix("[").partition("]")[0]
    if not position.isdecimal():
        return error
    row = int(position)
    ids: Sequence[str] = items.ids
    return InvalidRequest(
        f"row {row} (id {validate.shown(ids[row])}): {error}",
        reason=error.reason,
        field=row_field(items)(row),
        metadata=error.metadata | {"row": str(row)},
    )
