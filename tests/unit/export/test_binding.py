import math
from pathlib import Path

import numpy as np
import torch

from likewise.export.shapes.binding import binding_loss, pair_phrases
from likewise.export.shapes.captions import full_caption
from likewise.export.shapes.pool import exchange, sample_cluster
from likewise.export.shapes.world import COLOURS, SHAPES, TRAINING_PAIRS, Scene, Thing
from likewise.export.tokenizer import Tokenizer, write_word_tokenizer

_STAR, _CIRCLE = SHAPES.index("star"), SHAPES.index("circle")
_RED, _BLUE, _GREEN = COLOURS.index("red"), COLOURS.index("blue"), COLOURS.index("green")


def _things(*scenes: tuple[tuple[int, int], ...]) -> np.ndarray:
    things = np.full((len(scenes), 3, 4), -1, np.int8)
    for i, scene in enumerate(scenes):
        for j, (shape, colour) in enumerate(scene):
            things[i, j] = (shape, colour, 0, 0)
    return things


def _known() -> np.ndarray:
    return np.ones((len(SHAPES), len(COLOURS)), np.bool_)


def _logits(*pairs: tuple[int, int], value: float = 50.0) -> torch.Tensor:
    logits = torch.zeros(1, len(SHAPES), len(COLOURS))
    for shape, colour in pairs:
        logits[0, shape, colour] = value
    return logits


def test_a_model_that_binds_rightly_loses_nothing() -> None:
    things = _things(((_STAR, _RED), (_CIRCLE, _BLUE)))

    loss, accuracy = binding_loss(_logits((_STAR, _RED), (_CIRCLE, _BLUE)), things, _known())

    assert loss.item() < 1e-6
    assert accuracy == 1.0


def test_the_same_words_bound_otherwise_lose_much() -> None:
    things = _things(((_STAR, _RED), (_CIRCLE, _BLUE)))

    loss, accuracy = binding_loss(_logits((_STAR, _BLUE), (_CIRCLE, _RED)), things, _known())

    assert loss.item() > 50
    assert accuracy == 0.0


def test_a_bag_of_words_cannot_tell_two_objects_apart() -> None:
    things = _things(((_STAR, _RED), (_CIRCLE, _BLUE)))
    bag = _logits((_STAR, _RED), (_CIRCLE, _BLUE), (_STAR, _BLUE), (_CIRCLE, _RED))

    loss, _ = binding_loss(bag, things, _known())

    assert math.isclose(loss.item(), 2 * math.log(2), rel_tol=1e-5)


def test_a_pair_that_training_never_shows_is_no_wrong_answer() -> None:
    things = _things(((_STAR, _RED), (_CIRCLE, _BLUE)))
    known = _known()
    known[_STAR, _BLUE] = False
    fooled = _logits((_STAR, _RED), (_CIRCLE, _BLUE), (_STAR, _BLUE))

    open_loss, _ = binding_loss(fooled, things, _known())
    loss, _ = binding_loss(fooled, things, known)

    assert loss.item() < 1e-6 < open_loss.item()


def test_another_object_of_the_same_shape_is_no_wrong_answer() -> None:
    things = _things(((_STAR, _RED), (_STAR, _GREEN)))

    loss, _ = binding_loss(_logits((_STAR, _RED), (_STAR, _GREEN)), things, _known())

    assert loss.item() < 1e-6


def test_scenes_of_one_object_ask_nothing_and_still_have_a_gradient() -> None:
    logits = _logits((_STAR, _BLUE)).requires_grad_()

    loss, accuracy = binding_loss(logits, _things(((_STAR, _RED),)), _known())
    loss.backward()  # type: ignore[no-untyped-call]

    assert (loss.item(), accuracy) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_phrases_stand_in_the_order_of_the_logits(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "tokenizer.json", ["a", *SHAPES, *COLOURS])
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_length=8)

    ids = pair_phrases(tokenizer)

    assert ids.shape == (len(SHAPES) * len(COLOURS), 3)
    expected = tokenizer(["a blue star"]).ids[0, :3]
    assert ids[_STAR * len(COLOURS) + _BLUE].tolist() == expected.tolist()


def test_an_exchange_keeps_the_words_and_moves_them() -> None:
    scene = Scene((Thing("star", "red", "plain", "large"), Thing("circle", "blue", "dotted", "small")), "white")

    swapped = exchange(np.random.default_rng(0), scene, frozenset({("star", "blue"), ("circle", "red")}))

    assert swapped is not None
    assert [thing.pair for thing in swapped.things] == [("star", "blue"), ("circle", "red")]
    assert sorted(full_caption(swapped).split()) == sorted(full_caption(scene).split())


def test_an_exchange_never_makes_a_pair_that_is_not_allowed() -> None:
    scene = Scene((Thing("star", "red", "plain", "large"), Thing("circle", "blue", "dotted", "small")), "white")

    assert exchange(np.random.default_rng(0), scene, frozenset({("star", "blue")})) is None


def test_clusters_hold_scenes_of_the_same_words_bound_otherwise() -> None:
    twins = 0
    for cluster in range(60):
        scenes = sample_cluster(np.random.default_rng((9, cluster)), TRAINING_PAIRS)
        bags = [
            (
                scene.background,
                tuple(sorted(t.shape for t in scene.things)),
                tuple(sorted(t.colour for t in scene.things)),
            )
            for scene in scenes
        ]
        pairs = [tuple(sorted(thing.pair for thing in scene.things)) for scene in scenes]
        twins += any(bags[i] == bags[j] and pairs[i] != pairs[j] for i in range(len(scenes)) for j in range(i))

    assert twins > 20
