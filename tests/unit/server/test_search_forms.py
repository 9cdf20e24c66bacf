"""Forms that are kept are those that would be made anew."""

from dataclasses import replace

import pytest

from likewise.server.errors import InvalidRequest
from likewise.server.search_forms import MAX_FORMS, Forms
from likewise.shards.protocols import UnknownAttribute
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

SPEC = GallerySpec(
    name="shop",
    gallery_id="g1",
    spaces=(SpaceSpec(name="default", dim=4, digest="d"),),
    attributes=(AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_DOUBLE),),
)


def below(price: float, **fields: object) -> pb.SearchRequest:
    value = common_pb2.Value(double_value=price)
    comparison = common_pb2.Comparison(attribute="price", operator=common_pb2.COMPARISON_OPERATOR_LESS, value=value)
    return pb.SearchRequest(filter=common_pb2.Filter(comparison=comparison), **fields)  # type: ignore[arg-type]


def test_equal_forms_are_checked_once_and_other_ones_each_by_itself() -> None:
    forms = Forms()
    first = forms.of(below(5, k=3), SPEC)

    assert forms.of(below(5, k=3, request_id="another"), SPEC) is first
    others = [below(6, k=3), below(5, k=4), below(5), pb.SearchRequest(k=3), below(5, k=3, include_reference=True)]
    options = {first.options("default"), *(forms.of(other, SPEC).options("default") for other in others)}
    assert len(options) == 5  # what is included is not for the shards to know
    assert forms.of(others[-1], SPEC).include_reference


def test_a_changed_gallery_is_checked_against_anew() -> None:
    forms = Forms()
    forms.of(below(5), SPEC)

    with pytest.raises(UnknownAttribute):
        forms.of(below(5), replace(SPEC, attributes=()))


def test_a_wrong_form_is_refused_each_time() -> None:
    forms = Forms()

    for _ in range(2):
        with pytest.raises(InvalidRequest, match="k must be in"):
            forms.of(pb.SearchRequest(k=0), SPEC)


def test_no_more_forms_are_kept_than_may_be() -> None:
    forms = Forms()
    oldest = forms.of(below(-1), SPEC)
    for price in range(MAX_FORMS):
        forms.of(below(price), SPEC)

    assert forms.of(below(-1), SPEC) is not oldest
