"""Galleries: what they are made of, and the calls about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from likewise.client import rpc
from likewise.client.attributes import TYPE_NAMES, Schema, attribute_type
from likewise.client.errors import AlreadyExists, InvalidArgument, InvalidType
from likewise.client.references import set_field
from likewise.client.rpc import Call, make_call
from likewise.v1 import gallery_service_pb2 as gallery_pb


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """How a shard searches; what is left out is the server's default.

    Attributes:
        kind: "auto", "flat", "hnsw", "ivf", or any FAISS index_factory string.
        m: HNSW links a node.
        ef_construction: HNSW candidates while building.
        ef: HNSW candidates while searching.
        nlist: IVF lists.
        nprobe: IVF lists visited while searching.
        target_recall: Recall@k to expect, in place of ef and nprobe.
    """

    kind: str = "auto"
    m: int | None = None
    ef_construction: int | None = None
    ef: int | None = None
    nlist: int | None = None
    nprobe: int | None = None
    target_recall: float | None = None


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """A gallery as the server has it.

    Attributes:
        name: Its name.
        gallery_id: Identity, made at creation.
        dim: Numbers a vector, of its first space.
        encoder: Model family that encodes its images and texts; "" for vectors only.
        space: Digest of its first space.
        attributes: Attribute name to type ("string", "int64", "double", "bool", "timestamp", "string_list").
        shards: Partitions.
        replicas: Copies of each.
        index: How a shard searches.
        version: Store version.
        created: When, UTC.
        read_only: Writes and changes are refused.
    """

    name: str
    gallery_id: str
    dim: int
    encoder: str
    space: str
    attributes: dict[str, str]
    shards: int
    replicas: int
    index: IndexSpec
    version: int
    created: datetime
    read_only: bool = False

    @property
    def schema(self) -> Schema:
        """Attribute name to type, as the wire has it."""
        return {name: attribute_type(name, kind) for name, kind in self.attributes.items()}


@dataclass(frozen=True, slots=True)
class GalleryPage:
    """One page of galleries and the token of the next; "" after the last."""

    galleries: tuple[GalleryInfo, ...]
    next_page_token: str


def create_call(
    name: str,
    *,
    encoder: str | None,
    dim: int | None,
    attributes: Mapping[str, object] | None,
    shards: int | None,
    replicas: int | None,
    index: str | IndexSpec | None,
) -> Call[GalleryInfo]:
    """GalleryService.Create.

    Raises:
        InvalidArgument: If neither encoder nor dim is given, or an argument does not fit its field.
    """
    if not encoder and dim is None:
        raise InvalidArgument("give encoder= (a model family) or dim= (for vectors only)", field="encoder")
    space = gallery_pb.Space(name="default", dim=_count("dim", dim or 0), encoder=encoder or "")
    spec = _spec(name, attributes=attributes, shards=shards, replicas=replicas, index=index)
    spec.spaces.append(space)
    request = gallery_pb.GalleryServiceCreateRequest(spec=spec)
    return make_call(rpc.CREATE_GALLERY, request, gallery_of)


def get_call(name: str) -> Call[GalleryInfo]:
    """GalleryService.Get."""
    return make_call(rpc.GET_GALLERY, gallery_pb.GalleryServiceGetRequest(name=name_of(name)), gallery_of)


def list_call(page_token: str) -> Call[GalleryPage]:
    """GalleryService.List."""
    request = gallery_pb.GalleryServiceListRequest(page_size=1000, page_token=page_token)
    return make_call(rpc.LIST_GALLERIES, request, _page)


def update_call(
    current: GalleryInfo,
    *,
    attributes: Mapping[str, object] | None,
    shards: int | None,
    replicas: int | None,
    index: str | IndexSpec | None,
    min_recall: float | None = None,
) -> Call[GalleryInfo]:
    """GalleryService.Update of what is given; new attributes are added to the current ones.

    Raises:
        InvalidArgument: If nothing is given to change.
    """
    given = {"attributes": attributes, "shards": shards, "replicas": replicas, "index": index}
    paths = [path for path, value in given.items() if value is not None]
    if not paths:
        raise InvalidArgument(f"nothing to update: give one of {', '.join(given)}")
    all_attributes = None if attributes is None else {**current.attributes, **attributes}
    spec = _spec(current.name, attributes=all_attributes, shards=shards, replicas=replicas, index=index)
    request = gallery_pb.GalleryServiceUpdateRequest(
        spec=spec, update_mask=FieldMask(paths=paths), min_recall=min_recall
    )
    return make_call(rpc.UPDATE_GALLERY, request, gallery_of)


def delete_call(name: str) -> Call[None]:
    """GalleryService.Delete."""
    return make_call(rpc.DELETE_GALLERY, gallery_pb.GalleryServiceDeleteRequest(name=name_of(name)), _nothing)


def check_same(
    existing: GalleryInfo, *, encoder: str | None, dim: int | None, attributes: Mapping[str, object] | None
) -> None:
    """Refuse to take a gallery for one that it is not.

    Raises:
        AlreadyExists: If its encoder, dimension or one of the attributes asked for is another.
    """
    wanted = {name: TYPE_NAMES[attribute_type(name, kind)] for name, kind in (attributes or {}).items()}
    differences = [
        f"attribute {name!r} is {existing.attributes.get(name, 'missing')}, not {kind}"
        for name, kind in wanted.items()
        if existing.attributes.get(name) != kind
    ]
    if (encoder or "") != existing.encoder:
        differences.insert(0, f"its encoder is {existing.encoder!r}, not {encoder or ''!r}")
    if dim is not None and dim != existing.dim:
        differences.insert(0, f"its dimension is {existing.dim}, not {dim}")
    if differences:
        raise AlreadyExists(f"gallery {existing.name!r} exists and differs: {'; '.join(differences)}")


def _spec(
    name: str,
    *,
    attributes: Mapping[str, object] | None,
    shards: int | None,
    replicas: int | None,
    index: str | IndexSpec | None,
) -> gallery_pb.GallerySpec:
    spec = gallery_pb.GallerySpec(name=name_of(name))
    spec.attributes.extend(
        gallery_pb.Attribute(name=attribute, type=attribute_type(attribute, kind))
        for attribute, kind in (attributes or {}).items()
    )
    if shards is not None:
        spec.shards = _count("shards", shards)
    if replicas is not None:
        spec.replicas = _count("replicas", replicas)
    if index is not None:
        given = IndexSpec(kind=index) if isinstance(index, str) else index
        if not isinstance(given, IndexSpec):
            raise InvalidType(f"index must be a string or an IndexSpec, got a {type(index).__name__}", field="index")
        numbers = ("m", "ef_construction", "ef", "nlist", "nprobe")
        values = {key: _count(key, value) for key in numbers if (value := getattr(given, key)) is not None}
        spec.index.CopyFrom(gallery_pb.IndexSpec(kind=given.kind, **values))
        if given.target_recall is not None:
            set_field(spec.index, "target_recall", given.target_recall)
    return spec


def name_of(name: str) -> str:
    """A gallery's name, if it can be one.

    Raises:
        InvalidType: If it is no string.
    """
    if not isinstance(name, str):
        raise InvalidType(f"a gallery's name is a string, got a {type(name).__name__}", field="name")
    return name


def _count(field: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidType(f"{field} must be an integer, got {value!r}", field=field)
    if not 0 <= value < 1 << 32:
        raise InvalidArgument(f"{field} must be in [0, 4294967295], got {value}", field=field)
    return value


def gallery_of(message: Any) -> GalleryInfo:
    """The gallery of an answer that has one."""
    return _gallery(message.gallery)


def _gallery(message: gallery_pb.Gallery) -> GalleryInfo:
    spec = message.spec
    space = spec.spaces[0] if spec.spaces else gallery_pb.Space()
    given = {field.name: value for field, value in spec.index.ListFields() if field.name != "kind"}
    return GalleryInfo(
        name=spec.name,
        gallery_id=message.gallery_id,
        dim=space.dim,
        encoder=space.encoder,
        space=space.digest,
        attributes={one.name: TYPE_NAMES.get(one.type, str(one.type)) for one in spec.attributes},
        shards=spec.shards if spec.HasField("shards") else 1,
        replicas=spec.replicas if spec.HasField("replicas") else 1,
        index=IndexSpec(kind=spec.index.kind or "auto", **given),
        version=message.version,
        created=message.create_time.ToDatetime(UTC),
        read_only=message.read_only,
    )


def _page(message: gallery_pb.GalleryServiceListResponse) -> GalleryPage:
    return GalleryPage(tuple(_gallery(one) for one in message.galleries), message.next_page_token)


def _nothing(message: object) -> None:
    del message
