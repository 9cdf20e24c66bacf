"""Models of a cluster as messages between controller and routers, and back."""

import dataclasses
import json
from collections.abc import Mapping

from likewise.export.manifest import KINDS, Kind, Manifest
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.lineup import Versions
from likewise.server.promotion_record import Recorded
from likewise.v1 import model_service_pb2

_KINDS: Mapping[int, Kind] = {
    model_service_pb2.MODEL_KIND_IMAGE_ENCODER: "image_encoder",
    model_service_pb2.MODEL_KIND_TEXT_ENCODER: "text_encoder",
    model_service_pb2.MODEL_KIND_COMPOSER: "composer",
}
assert set(_KINDS.values()) == set(KINDS)


def model_route(manifest: Manifest, model: model_service_pb2.Model) -> pb.ModelRoute:
    """A version with its manifest, without addresses."""
    return pb.ModelRoute(model=model, manifest=json.dumps(dataclasses.asdict(manifest)))


def described(manifest: Manifest, state: "model_service_pb2.ModelState.ValueType") -> model_service_pb2.Model:
    """What a manifest alone says of a version."""
    return model_service_pb2.Model(
        name=manifest.name,
        version=manifest.version,
        kind=next(number for number, kind in _KINDS.items() if kind == manifest.kind),  # type: ignore[arg-type]  # an enum's number
        family=manifest.family,
        dim=manifest.dim,
        space=manifest.space,
        state=state,
        files=dict(manifest.files),
        compatible_with=dict(manifest.compatible_with),
    )


def manifest_of(route: pb.ModelRoute) -> Manifest:
    """What a router needs of a version's manifest: all but the tensors and files, which are the encoder's business."""
    model = route.model
    content = json.loads(route.manifest)
    return Manifest(
        name=model.name,
        version=model.version,
        kind=_KINDS[model.kind],
        family=model.family,
        dim=model.dim,
        space=model.space,
        inputs=(),
        outputs=(),
        files=dict(model.files),
        condition_templates=content["condition_templates"],
        compatible_with=dict(model.compatible_with),
    )


def lineup_message(versions: Versions) -> pb.Lineup:
    """Versions by name."""
    return pb.Lineup(
        models=[
            model_service_pb2.ModelVersion(name=name, version=version) for name, version in sorted(versions.items())
        ]
    )


def versions_of(lineup: pb.Lineup) -> dict[str, int]:
    """Name to version."""
    return {one.name: one.version for one in lineup.models}


def family_route(name: str, family: Recorded) -> pb.FamilyRoute:
    """A family's versions."""
    return pb.FamilyRoute(
        name=name,
        current=lineup_message(family.current),
        previous=lineup_message(family.previous) if family.previous is not None else None,
        withdrawn=lineup_message(family.withdrawn) if family.withdrawn is not None else None,
    )


def recorded_of(route: pb.FamilyRoute) -> Recorded:
    """A family's versions."""
    return Recorded(
        versions_of(route.current),
        versions_of(route.previous) if route.HasField("previous") else None,
        versions_of(route.withdrawn) if route.HasField("withdrawn") else None,
    )
