import itertools
import math

import numpy as np
import pytest

from likewise.export.shapes.captions import full_caption, parse, relation, vary_caption
from likewise.export.shapes.pool import sample_cluster
from likewise.export.shapes.world import (
    COLOURS,
    SHAPES,
    TEST_PAIRS,
    TRAINING_PAIRS,
    VALIDATION_PAIRS,
    Scene,
    Thing,
    redraw,
    render,
    sample_scene,
)

_ORDERED = sorted(TRAINING_PAIRS)


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, _ORDERED) for _ in range(count)]


def test_the_same_seed_gives_the_same_scenes_and_pixels() -> None:
    first, second = _scenes(20), _scenes(20)

    assert first == second
    assert render(first[3], 96).tobytes() == render(second[3], 96).tobytes()


def test_objects_lie_inside_the_frame_and_apart() -> None:
    for scene in _scenes(300):
        for thing in scene.things:
            assert thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        for a, b in itertools.combinations(scene.things, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_redrawing_keeps_the_content_and_nearly_the_places() -> None:
    rng = np.random.default_rng(1)
    for scene in _scenes(50):
        again = redraw(rng, scene)

        assert full_caption(again).split(" on a ")[1] == full_caption(scene).split(" on a ")[1]
        assert [(t.pair, t.texture, t.size) for t in again.things] == [
            (t.pair, t.texture, t.size) for t in scene.things
        ]


def test_pairs_are_kept_apart_and_every_shape_and_colour_is_trained_and_tested() -> None:
    assert not TEST_PAIRS & TRAINING_PAIRS
    assert not VALIDATION_PAIRS & TRAINING_PAIRS
    assert not VALIDATION_PAIRS & TEST_PAIRS
    assert len(TRAINING_PAIRS | VALIDATION_PAIRS | TEST_PAIRS) == len(SHAPES) * len(COLOURS)
    assert {shape for shape, _ in TEST_PAIRS} == set(SHAPES)
    assert {colour for _, colour in TEST_PAIRS} == set(COLOURS)
    assert {shape for shape, _ in TRAINING_PAIRS} == set(SHAPES)


def test_a_training_cluster_shows_no_held_out_pair() -> None:
    for seed in range(60):
        for scene in sample_cluster(np.random.default_rng(seed), TRAINING_PAIRS):
            assert {thing.pair for thing in scene.things} <= TRAINING_PAIRS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_is_drawn_where_the_scene_says_in_its_colour(shape: str, colour: str) -> None:
    thing = Thing(shape, colour, "plain", "large", x=0.3, y=0.7, radius=0.25)
    with_it = np.asarray(render(Scene((thing,), "white", 5), 120), int)
    without = np.asarray(render(Scene((), "white", 5), 120), int)

    rows, columns = np.nonzero(np.abs(with_it - without).sum(2) > 60)

    assert len(rows) > 400
    assert columns.min() >= 120 * 0.05 - 1
    assert columns.max() <= 120 * 0.55 + 1
    assert rows.min() >= 120 * 0.45 - 1
    assert rows.max() <= 120 * 0.95 + 1
    painted = np.median(with_it[rows, columns], axis=0)
    distances = {name: np.abs(painted - _pure(name)).sum() for name in COLOURS}
    assert min(distances, key=lambda name: float(distances[name])) == colour


def _pure(colour: str) -> np.ndarray:
    thing = Thing("square", colour, "plain", "large", radius=0.27)
    pixel: np.ndarray = np.asarray(render(Scene((thing,), "white"), 64), int)[32, 32]
    return pixel


def test_every_texture_and_background_looks_different() -> None:
    def picture(texture: str, background: str) -> bytes:
        scene = Scene((Thing("square", "red", texture, "large", radius=0.27),), background, 3)
        return render(scene, 64).tobytes()

    textures = {picture(t, "white") for t in ("plain", "striped", "dotted", "checked")}
    backgrounds = {picture("plain", b) for b in ("white", "grey", "black", "beige", "sky", "grainy")}

    assert len(textures) == 4
    assert len(backgrounds) == 6


def test_rendering_does_not_depend_on_the_resolution() -> None:
    for scene in _scenes(10, seed=4):
        small = np.asarray(render(scene, 64), float)
        large = np.asarray(render(scene, 256).reduce(4), float)

        assert np.abs(small - large).mean() < 9


def test_the_full_caption_reads_back_as_the_scene() -> None:
    for scene in _scenes(200):
        graph = parse(full_caption(scene))

        assert graph.background == scene.background
        assert [(n.shape, n.colour, n.texture, n.size) for n in graph.nodes] == [
            (t.shape, t.colour, t.texture, t.size) for t in scene.things
        ]
        assert graph.main == scene.main
        if len(scene.things) > 1:
            assert graph.relations[0] == (0, relation(scene.things[0], scene.things[1]), 1)


def test_a_varied_caption_says_nothing_false() -> None:
    rng = np.random.default_rng(2)
    for scene in _scenes(400):
        text = vary_caption(rng, scene)
        graph = parse(text)

        assert graph.background in (None, scene.background), text
        for node in graph.nodes:
            assert any(
                node.shape in (None, t.shape)
                and node.colour in (None, t.colour)
                and node.texture in (None, t.texture)
                and node.size in (None, t.size)
                for t in scene.things
            ), text


def test_synonyms_read_as_the_same_graph() -> None:
    assert parse("a big spotted violet moon to the left of a tiny solid box on a gray backdrop") == parse(
        "a large dotted purple crescent left of a small plain square on a grey background"
    )
