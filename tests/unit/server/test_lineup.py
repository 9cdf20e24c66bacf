"""Which versions may serve together, and from where to where a family may go. Pure values."""

from dataclasses import replace

import pytest

from likewise.export.manifest import Kind, Manifest, TensorSpec
from likewise.server.errors import FailedPrecondition
from likewise.server.lineup import (
    History,
    Lineup,
    LineupError,
    changed,
    check_change,
    check_galleries,
    highest,
    lineup_of,
)
from likewise.shards.spec import SpaceSpec

OLD, NEW = "sha256:old", "sha256:new"


def model(kind: Kind, version: int = 1, *, space: str = OLD, dim: int = 4, **changes: object) -> Manifest:
    made = Manifest(
        name=f"m-{kind}",
        version=version,
        kind=kind,
        family="m",
        dim=dim,
        space=space,
        inputs=(TensorSpec("x", "float32", (-1, 4)),),
        outputs=(TensorSpec("y", "float32", (-1, dim)),),
        files={"model.onnx": "0" * 64},
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def lineup(
    version: int = 1, *, space: str = OLD, dim: int = 4, compatible_with: dict[str, int] | None = None
) -> Lineup:
    kinds: tuple[Kind, ...] = ("image_encoder", "text_encoder", "composer")
    declared = compatible_with or {}
    return lineup_of("m", [model(kind, version, space=space, dim=dim, compatible_with=declared) for kind in kinds])


def test_a_lineup_has_one_space_one_version_of_each_kind_and_a_name_for_people() -> None:
    made = lineup(3)

    assert made.versions == {"m-composer": 3, "m-image_encoder": 3, "m-text_encoder": 3}
    assert (made.space, made.dim, made.family) == (OLD, 4, "m")
    assert str(made) == "m-composer/3, m-image_encoder/3, m-text_encoder/3"


def test_two_spaces_are_refused_with_both_digests() -> None:
    with pytest.raises(LineupError, match=f"is of space {NEW}, m-image_encoder/1 of {OLD}") as caught:
        lineup_of("m", [model("image_encoder"), model("text_encoder", space=NEW)])

    assert caught.value.spaces == (NEW, OLD)


@pytest.mark.parametrize(
    ("manifests", "message"),
    [
        ([model("text_encoder")], "family 'm' has no image encoder"),
        (
            [model("image_encoder"), model("image_encoder", name="other")],
            "two models of kind image_encoder: 'm-image_encoder' and 'other'",
        ),
    ],
)
def test_a_family_without_an_image_encoder_or_with_two_is_refused(manifests: list[Manifest], message: str) -> None:
    with pytest.raises(LineupError, match=message):
        lineup_of("m", manifests)


def test_the_highest_versions_count_by_number_and_not_by_digits() -> None:
    manifests = [model("image_encoder", version) for version in (9, 10, 2)] + [model("text_encoder", 1)]
    manifests.append(model("image_encoder", 99, family="other", name="o"))

    assert highest("m", manifests).versions == {"m-image_encoder": 10, "m-text_encoder": 1}


def test_a_promotion_replaces_its_kinds_and_leaves_the_rest() -> None:
    assert changed("m", lineup(1), [model("text_encoder", 2)]).versions == {
        "m-composer": 1,
        "m-image_encoder": 1,
        "m-text_encoder": 2,
    }


def test_promoting_one_model_of_another_space_names_the_rest_that_has_to_come_with_it() -> None:
    with pytest.raises(FailedPrecondition, match=r"together, m-text_encoder, m-composer as well") as caught:
        changed("m", lineup(1), [model("image_encoder", 2, space=NEW)])

    assert caught.value.reason == "SPACE_MISMATCH"
    assert {caught.value.metadata["got"], caught.value.metadata["expected"]} == {OLD, NEW}


def test_a_family_that_serves_nothing_yet_needs_an_image_encoder_first() -> None:
    with pytest.raises(FailedPrecondition, match="has no image encoder") as caught:
        changed("m", None, [model("composer")])

    assert caught.value.reason == "FAMILY_INCOMPLETE"


def test_only_what_every_member_declares_alike_is_compatible() -> None:
    declared = [
        model("image_encoder", compatible_with={"a": 4, "b": 4, "c": 4}),
        model("text_encoder", compatible_with={"a": 4, "b": 3}),
    ]

    assert lineup_of("m", declared).compatible_with == {"a": 4}


def test_the_same_space_and_a_compatible_one_may_be_gone_to() -> None:
    check_change(lineup(1), lineup(2))
    wider = lineup(2, space=NEW, dim=6, compatible_with={OLD: 4})
    check_change(lineup(1), wider)
    check_change(wider, lineup(1))


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ({}, "does not declare it compatible"),
        ({OLD: 3}, "declares 3 leading numbers compatible where its vectors have 4"),
    ],
)
def test_another_space_needs_a_new_gallery_generation_and_the_error_says_how(
    declared: dict[str, int], why: str
) -> None:
    with pytest.raises(FailedPrecondition, match=why) as caught:
        check_change(lineup(1), lineup(2, space=NEW, dim=6, compatible_with=declared))

    error = caught.value
    assert (error.reason, error.metadata["got"], error.metadata["expected"]) == ("SPACE_MISMATCH", NEW, OLD)
    for step in (
        "new gallery generation is required",
        "family name of their own",
        "create a gallery",
        "ingest",
        "move",
    ):
        assert step in str(error)


def test_no_gallery_is_left_without_models() -> None:
    galleries = [("vectors", SpaceSpec("s", 4, "vectors:4")), ("mine", SpaceSpec("s", 4, OLD, "m"))]
    foreign = [("theirs", SpaceSpec("s", 4, OLD, "other"))]
    wider = lineup(2, space=NEW, dim=6, compatible_with={OLD: 4})

    check_galleries(lineup(2), galleries + foreign)
    check_galleries(wider, galleries + foreign)
    check_galleries(lineup(2, space=NEW), foreign)
    with pytest.raises(FailedPrecondition, match="gallery 'mine' holds vectors of the space sha256:old"):
        check_galleries(lineup(2, space=NEW), galleries)
    # As many numbers, but not the gallery's.
    with pytest.raises(FailedPrecondition, match="gallery 'mine'"):
        check_galleries(wider, [("mine", SpaceSpec("s", 5, OLD, "m"))])


def test_a_history_knows_all_that_it_keeps() -> None:
    history = History(lineup(3), previous=lineup(2))

    assert {version for _, version in history.keys} == {2, 3}
