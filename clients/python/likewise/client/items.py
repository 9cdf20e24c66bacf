"""Stored items: reading, listing, counting and deleting them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy as np

from likewise.client import rpc
from likewise.client.errors import InvalidArgument, InvalidType
from likewise.client.filters import Filter, filter_message
from likewise.client.requests import wanted_attributes
from likewise.client.results import Attributes, rows_of
from likewise.client.rpc import Call, make_call, new_request_id
from likewise.client.versions import GalleryMemory, VersionToken, token_of
from likewise.v1 import item_service_pb2 as item_pb
from likewise.wire import F32, decode_vectors

MAX_ID_BYTES: Final = 512
_GET_IDS: Final = 10_000  # ids a Get, as item_service.proto has it
_DELETE_IDS: Final = 50_000  # ids a Delete: 25 MiB at the longest ids
_VECTOR_BYTES: Final = 16 << 20  # of vectors an answer brings, a quarter of the message limit


@dataclass(frozen=True, slots=True)
class Item:
    """One stored item.

    Attributes:
        id: Its id.
        attributes: Those asked for; None for a missing value.
        vector: (d,) float32 as it was given, when asked for.
    """

    id: str
    attributes: Attributes
    vector: F32 | None = None


class Items(Sequence[Item]):
    """Stored items: a sequence of `Item`, and the same as columns.

    Attributes:
        ids: Ids, in the order asked for.
        vectors: (n, d) float32 as they were given, read-only; None unless asked for.
        missing: Ids asked for that the gallery does not have.
        version: Store version read.
    """

    def __init__(self, parts: Sequence[item_pb.Items], *, missing: Sequence[str] = (), version: int = 0) -> None:
        vectors = [decode_vectors(part.vectors) for part in parts if part.HasField("vectors")]
        self.ids: list[str] = [one for part in parts for one in part.ids]
        self.vectors: F32 | None = np.concatenate(vectors) if len(vectors) > 1 else vectors[0] if vectors else None
        self.missing: list[str] = list(missing)
        self.version = version
        self._parts = parts
        self._attributes: list[Attributes] | None = None

    @property
    def attributes(self) -> list[Attributes]:
        """One dict an item with the attributes asked for; built when first looked at."""
        if self._attributes is None:
            self._attributes = [row for part in self._parts for row in rows_of(part.attributes, len(part.ids))]
        return self._attributes

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self.ids)))]
        vector = None if self.vectors is None else self.vectors[index]
        return Item(self.ids[index], self.attributes[index], vector)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Item]:
        return (self[row] for row in range(len(self.ids)))

    def __repr__(self) -> str:
        return f"<Items: {len(self.ids)}, {len(self.missing)} missing>"


@dataclass(frozen=True, slots=True)
class ItemPage:
    """One page of items and the token of the next; "" after the last."""

    items: Items
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many items a Delete removed, and the version from which they are gone."""

    count: int
    version: VersionToken


def checked_ids(ids: Any) -> list[str]:
    """Ids as a list of strings.

    Raises:
        InvalidArgument: If one is empty, too long or not UTF-8.
        InvalidType: If one is no string, or a single string was given.
    """
    if isinstance(ids, str | bytes):
        raise InvalidType(f"ids must be a list, got {ids!r}; write [{ids!r}]", field="ids")
    taken = list(ids.tolist() if hasattr(ids, "tolist") else ids.to_pylist() if hasattr(ids, "to_pylist") else ids)
    for row, one in enumerate(taken):
        if not isinstance(one, str):
            raise InvalidType(f"ids[{row}] must be a string, got {one!r}; write str(id)", field=f"ids[{row}]")
        try:
            length = len(one) if one.isascii() else len(one.encode())
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"ids[{row}] is not valid UTF-8: {one!r}", field=f"ids[{row}]") from error
        if not 1 <= length <= MAX_ID_BYTES:
            raise InvalidArgument(f"ids[{row}] must have 1 to {MAX_ID_BYTES} bytes, got {length}", field=f"ids[{row}]")
    return taken


def rows_a_call(vectors: bool, dim: int, wanted: int) -> int:
    """Rows to ask for at once so that the answer stays far below the message limit."""
    return max(1, min(wanted, _VECTOR_BYTES // (4 * max(dim, 1)))) if vectors else wanted


def get_calls(
    memory: GalleryMemory,
    ids: Any,
    *,
    attributes: Sequence[str] | bool,
    vectors: bool,
    at_least: VersionToken | bool,
    dim: int,
) -> Iterator[Call[item_pb.ItemServiceGetResponse]]:
    """ItemService.Get, in as many calls as its limits ask for; `merge_items` puts the answers together.

    Args:
        memory: The gallery.
        ids: Ids wanted.
        attributes: Names, or True for all.
        vectors: Bring the vectors along.
        at_least: See `Query`.
        dim: Numbers a vector; read only with `vectors`.
    """
    wanted = checked_ids(ids)
    rows = rows_a_call(vectors, dim, _GET_IDS)
    for start in range(0, max(len(wanted), 1), rows):
        request = item_pb.ItemServiceGetRequest(
            gallery=memory.name,
            ids=wanted[start : start + rows],
            attributes=wanted_attributes(attributes),
            vectors=vectors,
            at_least=memory.at_least(at_least),
        )
        yield make_call(rpc.GET_ITEMS, request, _same)


def merge_items(answers: Sequence[item_pb.ItemServiceGetResponse]) -> Items:
    """Answers of consecutive Get calls as one."""
    return Items(
        [answer.items for answer in answers],
        missing=[one for answer in answers for one in answer.missing],
        version=min(answer.version for answer in answers),
    )


def delete_calls(
    memory: GalleryMemory, ids: Any, where: Filter | None, request_id: str | None
) -> Iterator[Call[Deleted]]:
    """ItemService.Delete by ids, in as many calls as its limits ask for, or by a filter, in one.

    Raises:
        InvalidArgument: If not exactly one of ids and where is given.
    """
    if (ids is None) == (where is None):
        raise InvalidArgument("delete takes either ids or where=, and never everything by itself", field="ids")
    base = request_id or new_request_id()
    if where is not None:
        request = item_pb.ItemServiceDeleteRequest(gallery=memory.name, filter=filter_message(where), request_id=base)
        yield make_call(rpc.DELETE_ITEMS, request, _deleted, request_id=base)
        return
    wanted = checked_ids(ids)
    for start in range(0, len(wanted), _DELETE_IDS):
        part = base if len(wanted) <= _DELETE_IDS else f"{base}.{start}"
        chosen = item_pb.IdList(ids=wanted[start : start + _DELETE_IDS])
        request = item_pb.ItemServiceDeleteRequest(gallery=memory.name, ids=chosen, request_id=part)
        yield make_call(rpc.DELETE_ITEMS, request, _deleted, request_id=part)


def count_call(memory: GalleryMemory, where: Filter | None, at_least: VersionToken | bool) -> Call[int]:
    """ItemService.Count."""
    request = item_pb.ItemServiceCountRequest(
        gallery=memory.name, filter=filter_message(where), at_least=memory.at_least(at_least)
    )
    return make_call(rpc.COUNT_ITEMS, request, _count)


def list_call(
    memory: GalleryMemory,
    *,
    where: Filter | None,
    attributes: Sequence[str] | bool,
    vectors: bool,
    page_size: int,
    page_token: str,
    at_least: VersionToken | bool,
) -> Call[ItemPage]:
    """ItemService.List, one page.

    Raises:
        InvalidArgument: If the page size does not fit its field.
    """
    if not isinstance(page_size, int) or not 1 <= page_size <= 10_000:
        raise InvalidArgument(f"page_size must be in [1, 10000], got {page_size!r}", field="page_size")
    request = item_pb.ItemServiceListRequest(
        gallery=memory.name,
        filter=filter_message(where),
        page_size=page_size,
        page_token=page_token,
        attributes=wanted_attributes(attributes),
        vectors=vectors,
        at_least=memory.at_least(at_least),
    )
    return make_call(rpc.LIST_ITEMS, request, _page)


def _same(message: item_pb.ItemServiceGetResponse) -> item_pb.ItemServiceGetResponse:
    return message


def _page(message: item_pb.ItemServiceListResponse) -> ItemPage:
    return ItemPage(Items([message.items], version=message.version), message.next_page_token)


def _deleted(message: item_pb.ItemServiceDeleteResponse) -> Deleted:
    return Deleted(message.deleted, token_of(message.version))


def _count(message: item_pb.ItemServiceCountResponse) -> int:
    return message.count
