"""One picture, different conditions, different answers: with the built-in model, through the served API."""

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.integration.processes import ServerProcess

from likewise.client import Client, Condition, F, Gallery, Hits, InvalidArgument
from likewise.export.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TRAINING_PAIRS,
    Scene,
    edit_thing,
    redraw,
    render,
    sample_scene,
)

K = 8


def _png(scene: Scene, size: int = 128) -> bytes:
    buffer = io.BytesIO()
    render(scene, size).save(buffer, "PNG")
    return buffer.getvalue()


def _reference() -> Scene:
    rng = np.random.default_rng(7)
    scene = sample_scene(rng, sorted(TRAINING_PAIRS), count=1)
    return replace(edit_thing(scene, 0, shape="star", colour="blue", texture="plain"), background="white")


def _gallery() -> dict[str, Scene]:
    """Every colour, shape and background for the one object, and unrelated scenes around them."""
    rng = np.random.default_rng(11)
    reference = _reference()
    scenes = [redraw(rng, edit_thing(reference, 0, colour=colour)) for colour in COLOURS for _ in range(4)]
    scenes += [redraw(rng, edit_thing(reference, 0, shape=shape)) for shape in SHAPES for _ in range(4)]
    scenes += [redraw(rng, replace(reference, background=ground)) for ground in BACKGROUNDS for _ in range(4)]
    scenes += [sample_scene(rng, sorted(TRAINING_PAIRS)) for _ in range(200)]
    return {f"s{number:03d}": scene for number, scene in enumerate(scenes)}


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return _gallery()


@pytest.fixture(scope="module")
def shapes(server: ServerProcess, scenes: dict[str, Scene]) -> Iterator[Gallery]:
    with Client(server.address) as client:
        gallery = client.create_gallery(
            "conditional", encoder="shapes", shards=2, attributes={"colour": "string", "objects": "int64"}
        )
        attributes = [{"colour": s.things[0].colour, "objects": len(s.things)} for s in scenes.values()]
        gallery.upsert(list(scenes), images=[_png(scene) for scene in scenes.values()], attributes=attributes)
        yield gallery
        client.delete_gallery("conditional")


def _share(hits: Hits, scenes: dict[str, Scene], name: str, value: str) -> float:
    return float(np.mean([any(getattr(thing, name) == value for thing in scenes[i].things) for i in hits.ids]))


def test_a_change_condition_changes_what_it_names(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    picture = _png(_reference())

    plain = shapes.search(image=picture, k=4)
    red = shapes.search(image=picture, condition="in red", k=4)

    assert _share(plain, scenes, "colour", "blue") >= 0.75
    assert _share(red, scenes, "colour", "red") >= 0.75
    assert _share(red, scenes, "shape", "star") >= 0.75
    assert red.plan.composition.startswith("composer shapes-composer/1")


def test_a_focus_condition_keeps_what_it_names(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    hits = shapes.search(image=_png(_reference()), condition="colour", mode="focus", k=K)

    assert _share(hits, scenes, "colour", "blue") >= 0.75


def test_words_alone_describe_what_is_searched_for(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    for hits in (
        shapes.search(text="a green star on a white background", k=4),
        shapes.search(condition="a green star on a white background", k=4),
    ):
        assert _share(hits, scenes, "colour", "green") >= 0.75
        assert hits.plan.composition == "text"


def test_a_condition_with_a_mode_needs_a_reference(shapes: Gallery) -> None:
    with pytest.raises(InvalidArgument, match="of a reference"):
        shapes.search(condition="colour", mode="focus")


def test_a_stored_item_is_a_reference_like_its_picture(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    by_id = shapes.search(id="s000", condition="in red", k=K, include_reference=True)
    by_image = shapes.search(image=_png(scenes["s000"]), condition="in red", k=K, include_reference=True)

    assert by_id.ids == by_image.ids
    np.testing.assert_allclose(by_id.scores, by_image.scores, atol=1e-4)


def test_the_reference_picture_is_left_out_and_said_so(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    picture = _png(scenes["s005"])

    hits = shapes.search(image=picture, k=K)

    assert "s005" not in hits.ids
    assert [warning.code for warning in hits.warnings] == ["REFERENCE_EXCLUDED"]
    assert shapes.search(image=picture, k=1, include_reference=True).ids == ["s005"]


def test_a_filter_holds_under_a_condition(shapes: Gallery, scenes: dict[str, Scene]) -> None:
    hits = shapes.search(image=_png(_reference()), condition="in red", k=K, where=F.objects == 1, attributes=True)

    assert len(hits) == K
    assert all(hit.attributes["objects"] == 1 for hit in hits)


def test_weights_and_polarity_move_the_answer(shapes: Gallery) -> None:
    picture = _png(_reference())

    full = shapes.search(image=picture, conditions=[Condition("in red")], k=K)
    faint = shapes.search(image=picture, conditions=[Condition("in red", weight=1e-3)], k=K)
    against = shapes.search(image=picture, conditions=[Condition("in red", negative=True)], k=K)
    plain = shapes.search(image=picture, k=K)

    assert full.ids == shapes.search(image=picture, condition="in red", k=K).ids
    assert faint.ids == plain.ids
    assert against.ids != full.ids


def test_unknown_words_are_said(shapes: Gallery) -> None:
    hits = shapes.search(text="a zeppelin", k=1)

    assert "TEXT_UNKNOWN_WORDS" in {warning.code for warning in hits.warnings}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("colours", ["RGB", "L", "RGBA", "CMYK", "P"])
def test_every_usual_kind_of_image_is_taken(shapes: Gallery, kind: str, colours: str) -> None:
    if (kind, colours) in {("JPEG", "RGBA"), ("JPEG", "P"), ("PNG", "CMYK"), ("WEBP", "CMYK")}:
        pytest.skip("the format cannot hold it")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(_png(_reference()))).convert(colours).save(buffer, kind)

    assert len(shapes.search(image=buffer.getvalue(), k=3)) == 3
