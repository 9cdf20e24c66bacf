"""Item requests to frozen values. A bad row refuses the call with the row and the field named."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from likewise.server import validate
from likewise.server.errors import InvalidRequest
from likewise.server.validate_search import filter_bytes
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import common_pb2
from likewise.v1 import item_service_pb2 as pb

MAX_ROWS: Final = 100_000
MAX_GET_IDS: Final = 10_000
MAX_DELETE_IDS: Final = 100_000
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class ItemsInput:
    """Items to write, rows and shapes checked; exactly one of `vectors`, `images` and `texts` is set.

    Attributes:
        ids: One a row; one given twice is the writer's to resolve (the last wins).
        space: Where the vectors live.
        vectors: (rows, dim) float32 as given, lengths and finiteness not checked yet.
        images: Encoded images.
        texts: Texts, none blank.
        attributes: Columns as they came, not checked yet.
    """

    ids: tuple[str, ...]
    space: SpaceSpec
    vectors: F32 | None
    images: tuple[bytes, ...] | None
    texts: tuple[str, ...] | None
    attributes: tuple[common_pb2.AttributeColumn, ...]


def items_input(items: pb.Items, spec: GallerySpec) -> ItemsInput:
    """Check the items of an upsert, but for the numbers and values in their columns.

    Raises:
        InvalidRequest: Naming the field, and the row where one is wrong.
        FailedPrecondition: If the vectors live in another space.
        Unimplemented: For parts of a later release.
    """
    if items.thumbnails:
        raise validate.later("items.thumbnails", "thumbnails are")
    ids = validate.item_ids(items.ids, "items.ids", most=MAX_ROWS)
    if not ids:
        raise InvalidRequest("items.ids is empty: an upsert needs at least one row", field="items.ids")
    space = spec.space()
    vectors = images = texts = None
    match items.WhichOneof("content"):
        case "vectors":
            vectors = validate.vectors(items.vectors, space, "items.vectors")
            _same_length(len(vectors), len(ids), "items.vectors")
        case "images":
            images = tuple(items.images.data)
            _same_length(len(images), len(ids), "items.images.data")
        case "texts":
            _same_length(len(items.texts.values), len(ids), "items.texts.values")
            texts = tuple(
                validate.text(value, f"items.texts.values[{i}]") for i, value in enumerate(items.texts.values)
            )
        case "multi_vectors":
            raise validate.later("items.multi_vectors", "sets of vectors an item are")
        case _:
            raise InvalidRequest("items need vectors, images or texts, got none of them", field="items")
    return ItemsInput(
        ids=ids, space=space, vectors=vectors, images=images, texts=texts, attributes=tuple(items.attributes)
    )


def row_field(items: ItemsInput) -> Callable[[int], str]:
    """Path of one row's content, for errors about it."""
    member = "vectors" if items.vectors is not None else "images.data" if items.images is not None else "texts.values"
    return lambda row: f"items.{member}[{row}]"


@dataclass(frozen=True, slots=True)
class Deletion:
    """What to delete: `ids`, or what `filter` matches when that is set."""

    ids: tuple[str, ...]
    filter: common_pb2.Filter | None


def deletion(request: pb.ItemServiceDeleteRequest, spec: GallerySpec) -> Deletion:
    """Check a delete; a filter has to fit the schema."""
    match request.WhichOneof("selection"):
        case "ids":
            return Deletion(validate.item_ids(request.ids.ids, "ids.ids", most=MAX_DELETE_IDS), None)
        case "filter":
            filter_bytes(request.filter, True, spec)
            return Deletion((), request.filter)
        case _:
            raise InvalidRequest("a delete needs ids or a filter, got neither", field="selection")


def page_size(request: pb.ItemServiceListRequest) -> int:
    """Rows a page."""
    return (
        validate.within(request.page_size, 1, MAX_PAGE, "page_size") if request.HasField("page_size") else DEFAULT_PAGE
    )


def _same_length(got: int, expected: int, field: str) -> None:
    if got != expected:
        raise InvalidRequest(
            f"{field} has {got:,} rows, items.ids has {expected:,}", reason="LENGTH_MISMATCH", field=field
        )
