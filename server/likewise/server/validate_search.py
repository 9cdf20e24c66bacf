"""Search and Compose requests to frozen values, everything that does not depend on stored items checked.

What this release does not serve is refused by name, never skipped.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from likewise.server import validate
from likewise.server.errors import InvalidRequest
from likewise.server.query import ConditionInput, ImageReference, TextReference, VectorReference
from likewise.shards.filter import compile_message, filter_key
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

DEFAULT_K: Final = 10
MAX_K: Final = 10_000
MAX_CONDITIONS: Final = 16
MAX_WEIGHT: Final = 100.0
MAX_BATCH: Final = 1_000
MAX_BATCH_HITS: Final = 1_000_000
"""Of all searches of a batch together: their ids and scores alone nearly fill a message of 64 MiB."""


@dataclass(frozen=True, slots=True)
class ItemReference:
    """A stored item, not looked up yet."""

    id: str


class Question(NamedTuple):
    """What a query vector is made of; at least one of the two is there."""

    space: SpaceSpec
    reference: ImageReference | TextReference | VectorReference | ItemReference | None
    conditions: tuple[ConditionInput, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where relevance ends; at most one is set."""

    min_score: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """Whether an answer without every shard will do, and from which coverage on."""

    allowed: bool = False
    min_coverage: float = 0.0


@dataclass(frozen=True, slots=True)
class Looking:
    """How hard to look; None leaves it to the gallery."""

    exact: bool | None = None
    ef: int | None = None
    nprobe: int | None = None
    over_fetch: float | None = None
    target_recall: float | None = None


@dataclass(frozen=True, slots=True)
class SearchForm:
    """What a search asks for besides its question, checked. Fields as in `likewise.v1.SearchRequest`.

    Callers send the same form over and over, with another reference each time.
    """

    k: int
    filter: bytes
    cut: Cut
    looking: Looking
    attributes: tuple[str, ...]
    vectors: bool
    partial: Partial
    include_reference: bool


def search_form(request: pb.SearchRequest, spec: GallerySpec) -> SearchForm:
    """Check all of a search of the gallery `spec` but its question and its request id.

    Raises:
        InvalidRequest: Naming the field.
        Unimplemented: For parts of a later release.
    """
    if request.mask.explanation:
        raise validate.later("mask.explanation", "scores of each condition are")
    return SearchForm(
        k=validate.within(request.k, 1, MAX_K, "k") if request.HasField("k") else DEFAULT_K,
        filter=filter_bytes(request.filter, request.HasField("filter"), spec),
        cut=_cut(request.cutoff),
        looking=_looking(request.params),
        attributes=validate.attribute_names(request.mask.attributes, spec, "mask.attributes"),
        vectors=request.mask.vectors,
        partial=_partial(request.partial),
        include_reference=request.include_reference,
    )


def form_key(request: pb.SearchRequest) -> tuple[object, ...]:
    """What `search_form` reads of a request: equal keys have equal forms."""
    return (
        request.k if request.HasField("k") else None,
        # None and b"": an empty filter is refused, none is not.
        request.filter.SerializeToString() if request.HasField("filter") else None,
        request.params.SerializeToString() if request.HasField("params") else b"",
        request.cutoff.SerializeToString() if request.HasField("cutoff") else b"",
        request.mask.SerializeToString() if request.HasField("mask") else b"",
        request.partial.SerializeToString() if request.HasField("partial") else b"",
        request.include_reference,
    )


def question(reference: pb.Reference, conditions: Iterable[pb.Condition], space: str, spec: GallerySpec) -> Question:
    """Check the reference and the conditions of a search of the gallery `spec`; errors as for `search_query`."""
    where = validate.space_of(spec, space)
    given = tuple(conditions)
    if len(given) > MAX_CONDITIONS:
        raise InvalidRequest(f"conditions: at most {MAX_CONDITIONS}, got {len(given)}", field="conditions")
    asked = Question(
        space=where,
        reference=_reference(reference, where),
        conditions=tuple(_condition(condition, f"conditions[{i}]") for i, condition in enumerate(given)),
    )
    if asked.reference is None and not asked.conditions:
        raise InvalidRequest("a search needs a reference, a condition or both, got neither", field="reference")
    return asked


def filter_bytes(message: common_pb2.Filter, given: bool, spec: GallerySpec) -> bytes:
    """The filter as shards take it, checked against the schema; b"" for none."""
    if not given:
        return b""
    compile_message(message, spec.attributes, field="filter")
    return filter_key(message)


def _reference(
    message: pb.Reference, space: SpaceSpec
) -> ImageReference | TextReference | VectorReference | ItemReference | None:
    match message.WhichOneof("kind"):
        case "image":
            if not message.image:
                raise InvalidRequest(
                    "reference.image is empty (0 bytes)", reason="IMAGE_UNDECODABLE", field="reference.image"
                )
            return ImageReference(message.image)
        case "text":
            return TextReference(validate.text(message.text, "reference.text"))
        case "vector":
            vector = validate.vectors(message.vector, space, "reference.vector")[0]
            return VectorReference(vector, validate.unit(vector, "reference.vector"))
        case "item_id":
            return ItemReference(validate.item_id(message.item_id, "reference.item_id"))
        case "multi_vector":
            raise validate.later("reference.multi_vector", "multi-vector references are")
        case _:
            return None


def _condition(message: pb.Condition, field: str) -> ConditionInput:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest(f"{field} needs a kind: text; got none", field=field)
    if kind != "text":
        raise validate.later(f"{field}.{kind}", f"conditions by {kind} are")
    weight = message.weight if message.HasField("weight") else 1.0
    if not math.isfinite(weight) or not 0 < weight <= MAX_WEIGHT:
        raise InvalidRequest(f"{field}.weight must be in (0, {MAX_WEIGHT:g}], got {weight:g}", field=f"{field}.weight")
    if message.polarity not in pb.Polarity.values():
        raise InvalidRequest(f"{field}.polarity: {message.polarity} is unknown", field=f"{field}.polarity")
    if message.mode not in pb.ConditionMode.values():
        raise InvalidRequest(f"{field}.mode: {message.mode} is unknown", field=f"{field}.mode")
    return ConditionInput(
        text=validate.text(message.text, f"{field}.text"),
        mode=message.mode,
        weight=weight,
        negative=message.polarity == pb.POLARITY_NEGATIVE,
    )


def _cut(message: pb.Cutoff) -> Cut:
    match message.WhichOneof("kind"):
        case "min_score":
            if not math.isfinite(message.min_score):
                raise InvalidRequest(
                    f"cutoff.min_score must be finite, got {message.min_score:g}", field="cutoff.min_score"
                )
            return Cut(min_score=message.min_score)
        case "relative":
            return Cut(relative=validate.between(message.relative, 0, 1, "cutoff.relative", open_low=True))
        case "min_relevance":
            raise validate.later("cutoff.min_relevance", "calibrated relevance is")
        case _:
            return Cut()


def _looking(message: pb.SearchParams) -> Looking:
    exact = message.exact if message.HasField("exact") else None
    ef = validate.within(message.ef, 1, 65_536, "params.ef") if message.HasField("ef") else None
    nprobe = validate.within(message.nprobe, 1, 65_536, "params.nprobe") if message.HasField("nprobe") else None
    over_fetch = None
    if message.HasField("over_fetch"):
        over_fetch = validate.between(message.over_fetch, 1, 100, "params.over_fetch")
    if exact:
        for name, value in (("ef", ef), ("nprobe", nprobe), ("over_fetch", over_fetch)):
            if value is not None:
                raise InvalidRequest(
                    f"params.{name} is {value:g}, but params.exact compares every item: give one of the two",
                    field=f"params.{name}",
                )
    target = None
    if message.HasField("target_recall"):
        target = validate.between(message.target_recall, 0, 1, "params.target_recall", open_low=True)
        for name, value in (("exact", exact), ("ef", ef), ("nprobe", nprobe), ("over_fetch", over_fetch)):
            if value is not None:
                raise InvalidRequest(
                    f"params.{name} is {value:g}, but params.target_recall leaves how hard to look to the server: "
                    "give one of the two",
                    field=f"params.{name}",
                )
    return Looking(exact=exact, ef=ef, nprobe=nprobe, over_fetch=over_fetch, target_recall=target)


def _partial(message: pb.PartialPolicy) -> Partial:
    if message.mode not in pb.PartialPolicyMode.values():
        raise InvalidRequest(f"partial.mode: {message.mode} is unknown", field="partial.mode")
    allowed = message.mode == pb.PARTIAL_POLICY_MODE_ALLOW
    if not message.HasField("min_coverage"):
        return Partial(allowed=allowed)
    if not allowed:
        raise InvalidRequest(
            f"partial.min_coverage is {message.min_coverage:g}, but only the mode ALLOW answers without every shard",
            field="partial.min_coverage",
        )
    return Partial(allowed=True, min_coverage=validate.between(message.min_coverage, 0, 1, "partial.min_coverage"))
