"""Gallery requests to descriptions."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from likewise.server import validate
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.protocols import Models
from likewise.shards import gpu
from likewise.shards import spec as specs
from likewise.shards.index_build import validate_index
from likewise.shards.spec import AttributeSpec, GallerySpec, IndexSpec, SpaceSpec
from likewise.v1 import gallery_service_pb2 as pb

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000

# Which numbers mean something to which kind; a factory string says its own structure, so only search defaults are left.
_NUMBERS: Final[dict[str, tuple[str, ...]]] = {
    "auto": ("m", "ef_construction", "ef"),
    "flat": (),
    "hnsw": ("m", "ef_construction", "ef"),
    "ivf": ("nlist", "nprobe"),
}
_FACTORY_NUMBERS: Final = ("ef", "nprobe")


def new_gallery(message: pb.GallerySpec, models: Models) -> GallerySpec:
    """The description of a gallery to make, with a new identity.

    Raises:
        SpecError, InvalidRequest: Naming the field.
        NotFound: If there are no models of the encoder's name.
        Unimplemented: For parts of a later release.
    """
    if len(message.spaces) > 1:
        raise validate.later("spec.spaces[1]", "more than one space is")
    index = specs.index_from_message(message.index)
    made = specs.validate(
        GallerySpec(
            name=message.name,
            gallery_id=uuid.uuid4().hex,
            spaces=tuple(_space(space, f"spec.spaces[{i}]", models) for i, space in enumerate(message.spaces)),
            attributes=_attributes(message.attributes),
            shards=message.shards if message.HasField("shards") else 1,
            replicas=_replicas(message),
            index=index,
            created_micros=time.time_ns() // 1_000,
        )
    )
    check_index(index, made.spaces)
    return made


def changed_gallery(old: GallerySpec, message: pb.GallerySpec, paths: Sequence[str]) -> GallerySpec:
    """`old` with the parts that `paths` names taken from the message.

    Raises:
        SpecError, InvalidRequest: Naming the field.
        FailedPrecondition: For a part that cannot be changed, or an attribute that would go or change its type.
        Unimplemented: For parts of a later release.
    """
    if not paths:
        raise InvalidRequest("update_mask is empty: it names what to change", field="update_mask")
    new = old
    for path in paths:
        match path.removeprefix("spec."):
            case "shards":
                if not message.HasField("shards"):
                    raise InvalidRequest("update_mask names shards, but spec.shards is not set", field="spec.shards")
                new = replace(new, shards=message.shards)
            case "replicas":
                if not message.HasField("replicas"):
                    raise InvalidRequest(
                        "update_mask names replicas, but spec.replicas is not set", field="spec.replicas"
                    )
                new = replace(new, replicas=_replicas(message))
            case "index":
                new = replace(new, index=specs.index_from_message(message.index))
            case "attributes":
                new = replace(new, attributes=_grown(old, _attributes(message.attributes)))
            case "name" | "spaces":
                raise FailedPrecondition(
                    f"{path} of a gallery cannot be changed: make another one and upsert into that", field="update_mask"
                )
            case _:
                raise InvalidRequest(
                    f"update_mask: {validate.shown(path)} is unknown; known are shards, replicas, index, attributes",
                    field="update_mask",
                )
    check_index(new.index, new.spaces)
    return specs.validate(new)


def check_index(index: IndexSpec, spaces: Sequence[SpaceSpec]) -> None:
    """Refuse a kind that FAISS cannot build at the spaces' dimensions, and numbers that the kind has no use for."""
    gpu.check(index, field="spec.index.kind")
    for space in spaces:
        validate_index(index, space.dim, field="spec.index.kind")
    used = _NUMBERS.get(index.kind.lower(), _FACTORY_NUMBERS)
    for name in ("m", "ef_construction", "ef", "nlist", "nprobe"):
        if getattr(index, name) is not None and name not in used:
            raise InvalidRequest(
                f"spec.index.{name} is {getattr(index, name)}, but an index of kind {index.kind!r} has no such number; "
                f"it takes {', '.join(used) or 'none'}",
                field=f"spec.index.{name}",
            )


def min_recall_of(request: pb.GalleryServiceUpdateRequest) -> float | None:
    """The lowest recall that a new index may have; None where the caller leaves it to the server."""
    if not request.HasField("min_recall"):
        return None
    if not 0.0 <= request.min_recall <= 1.0:  # NaN is in no interval
        raise InvalidRequest(f"min_recall must be in [0, 1], got {request.min_recall}", field="min_recall")
    return request.min_recall


def page_size(request: pb.GalleryServiceListRequest | pb.GalleryServiceListSnapshotsRequest) -> int:
    """Galleries or snapshots a page."""
    return (
        validate.within(request.page_size, 1, MAX_PAGE, "page_size") if request.HasField("page_size") else DEFAULT_PAGE
    )


def _space(message: pb.Space, field: str, models: Models) -> SpaceSpec:
    name = message.name or "default"
    if not message.encoder:
        specs_dim = validate.within(message.dim, 1, specs.MAX_DIM, f"{field}.dim")
        return _with_digest(SpaceSpec(name, specs_dim, specs.vector_space_digest(specs_dim)), message, field)
    family = models.family(message.encoder)
    if message.dim not in (0, family.dim):
        raise InvalidRequest(
            f"{field}.dim is {message.dim}, the models {family.name!r} give {family.dim}: leave it out",
            reason="DIMENSION_MISMATCH",
            field=f"{field}.dim",
        )
    return _with_digest(SpaceSpec(name, family.dim, family.space, family.name), message, field)


def _with_digest(space: SpaceSpec, message: pb.Space, field: str) -> SpaceSpec:
    if message.digest not in ("", space.digest):
        raise FailedPrecondition(
            f"{field}.digest is {validate.shown(message.digest)}, the space is {space.digest!r}: leave it out",
            reason="SPACE_MISMATCH",
            field=f"{field}.digest",
            metadata={"got": message.digest[:256], "expected": space.digest},
        )
    return space


def _replicas(message: pb.GallerySpec) -> int:
    # Whether there may be more than one is for whoever serves them: one process has no place for copies.
    return message.replicas if message.HasField("replicas") else 1


def _attributes(messages: Sequence[pb.Attribute]) -> tuple[AttributeSpec, ...]:
    return tuple(AttributeSpec(message.name, int(message.type)) for message in messages)


def _grown(old: GallerySpec, wanted: tuple[AttributeSpec, ...]) -> tuple[AttributeSpec, ...]:
    """The old attributes in their order, then the new ones; none may go or change its type."""
    types = {attribute.name: attribute.type for attribute in wanted}
    for attribute in old.attributes:
        if attribute.name in types and types[attribute.name] != attribute.type:
            raise FailedPrecondition(
                f"attribute {attribute.name!r} of gallery {old.name!r} has a type already, which cannot be changed",
                field="spec.attributes",
            )
        if attribute.name not in types:
            raise FailedPrecondition(
                f"attribute {attribute.name!r} of gallery {old.name!r} cannot be removed; name it among the new ones",
                field="spec.attributes",
            )
    known = {attribute.name for attribute in old.attributes}
    return (*old.attributes, *(attribute for attribute in wanted if attribute.name not in known))
