import numpy as np
import pytest

from likewise.export.shapes.captions import full_caption, parse
from likewise.export.shapes.conditions import (
    CONDITION_TEMPLATES,
    KINDS,
    Condition,
    compose_text,
    phrase,
    vocabulary_texts,
)
from likewise.export.shapes.pool import GraphArrays, sample_cluster, to_arrays, word_targets
from likewise.export.shapes.triplets import Triplets, caption_matches, main_values, mine, satisfied
from likewise.export.shapes.world import COLOURS, SHAPES, TEXTURES, TRAINING_PAIRS, VALUES

_NAMES = ("shape", "colour", "texture", "size", "background")


@pytest.fixture(scope="module")
def graphs() -> GraphArrays:
    scenes = [
        scene for cluster in range(150) for scene in sample_cluster(np.random.default_rng((3, cluster)), TRAINING_PAIRS)
    ]
    return to_arrays([parse(full_caption(scene)) for scene in scenes])


@pytest.fixture(scope="module")
def triplets(graphs: GraphArrays) -> Triplets:
    return mine(0, graphs, range(len(graphs.main)), per_kind=1)


def _rows(triplets: Triplets, kind: str) -> np.ndarray:
    rows = np.flatnonzero(triplets.kind == KINDS.index(kind))
    assert len(rows) > 50
    return rows


def _objects(graphs: GraphArrays, row: int) -> list[tuple[int, ...]]:
    return sorted(tuple(thing) for thing in graphs.things[row].tolist() if thing[0] >= 0)


def test_a_kept_attribute_is_the_references_and_hard_negatives_lack_it(graphs: GraphArrays, triplets: Triplets) -> None:
    values = main_values(graphs)
    for i in _rows(triplets, "focus_attribute"):
        attribute = triplets.attribute[i]
        wanted = values[triplets.reference[i], attribute]
        negatives = triplets.negatives[i][triplets.negatives[i] >= 0]

        assert values[triplets.target[i], attribute] == wanted
        assert (values[negatives, attribute] != wanted).all()


def test_a_changed_attribute_is_all_that_differs_between_reference_and_target(
    graphs: GraphArrays, triplets: Triplets
) -> None:
    values = main_values(graphs)
    for i in _rows(triplets, "change_attribute"):
        reference, target = values[triplets.reference[i]], values[triplets.target[i]]

        assert np.flatnonzero(reference != target).tolist() == [triplets.attribute[i]]


def test_hard_negatives_of_a_change_are_not_the_targets_content(graphs: GraphArrays, triplets: Triplets) -> None:
    for i in _rows(triplets, "change_attribute"):
        target = (_objects(graphs, triplets.target[i]), graphs.background[triplets.target[i]])
        for negative in triplets.negatives[i][triplets.negatives[i] >= 0]:
            assert (_objects(graphs, negative), graphs.background[negative]) != target


def test_a_kept_object_is_in_both_scenes_and_in_no_hard_negative(graphs: GraphArrays, triplets: Triplets) -> None:
    for i in _rows(triplets, "focus_object"):
        wanted = tuple(triplets.wanted[i][:2])

        def pairs(row: int) -> list[tuple[int, ...]]:
            return [thing[:2] for thing in _objects(graphs, row)]

        assert wanted in pairs(triplets.reference[i])
        assert wanted in pairs(triplets.target[i])
        for negative in triplets.negatives[i][triplets.negatives[i] >= 0]:
            assert wanted not in pairs(negative)


def test_an_added_object_is_the_only_difference_of_the_target(graphs: GraphArrays, triplets: Triplets) -> None:
    for i in _rows(triplets, "change_object"):
        reference, target = _objects(graphs, triplets.reference[i]), _objects(graphs, triplets.target[i])
        extra = list(target)
        for thing in reference:
            extra.remove(thing)

        assert len(extra) == 1
        assert all(w in (-1, v) for w, v in zip(triplets.wanted[i].tolist(), extra[0], strict=True))
        assert graphs.background[triplets.reference[i]] == graphs.background[triplets.target[i]]


def test_the_reference_itself_is_a_hard_negative_of_most_changes(triplets: Triplets) -> None:
    rows = np.flatnonzero(np.isin(triplets.kind, [1, 3]))

    share = (triplets.negatives[rows] == triplets.reference[rows, None]).any(1).mean()

    assert share > 0.5


def test_every_target_counts_as_satisfied(graphs: GraphArrays, triplets: Triplets) -> None:
    queries = np.arange(0, len(triplets.kind), 7)

    result = satisfied(triplets, queries, graphs, triplets.target[queries])

    assert result.diagonal().all()
    assert result.mean() < 0.5


def test_mining_is_the_same_for_the_same_seed(graphs: GraphArrays, triplets: Triplets) -> None:
    again = mine(0, graphs, range(len(graphs.main)), per_kind=1)

    assert again.texts == triplets.texts
    assert np.array_equal(again.negatives, triplets.negatives)


def test_a_caption_is_true_of_its_own_scene_and_of_those_it_does_not_exclude() -> None:
    images = to_arrays(
        [
            parse("a large plain red star left of a small dotted blue ring on a white background"),
            parse("a large plain blue star left of a small dotted red ring on a white background"),
            parse("a large plain red star on a black background"),
        ]
    )
    texts = to_arrays(
        [
            parse("a red star"),
            parse("a red star on a white background"),
            parse("a blue ring and a star"),
            parse("white background"),
        ]
    )

    matches = caption_matches(texts, images, np.array([0, 0, 0, 0]))

    assert matches.tolist() == [
        [True, False, True],
        [True, False, False],
        [True, False, False],
        [True, True, False],
    ]


def test_word_pairs_that_no_caption_holds_are_not_taught() -> None:
    graphs = to_arrays([parse("a large plain red star on a white background")])

    targets, known = word_targets(graphs)

    assert targets.sum() == 1 + 4 + 6
    assert np.array_equal(targets[0], known)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_uses_known_words_only(kind: str) -> None:
    known = {word for text in vocabulary_texts() for word in text.split()}
    known |= {word for values in VALUES.values() for word in values}
    rng = np.random.default_rng(0)
    for _ in range(300):
        attribute = _NAMES[rng.integers(5)]
        values = VALUES[attribute]
        noun = f"{TEXTURES[rng.integers(4)]} {COLOURS[rng.integers(12)]} {SHAPES[rng.integers(12)]}"
        condition = {
            "focus_attribute": Condition(kind, attribute),
            "change_attribute": Condition(kind, attribute, values[rng.integers(len(values))]),
        }.get(kind, Condition(kind, noun=noun))

        assert set(phrase(rng, condition).split()) <= known


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        pytest.param(Condition("focus_attribute", "colour"), "same colour", id="keep an attribute"),
        pytest.param(Condition("change_attribute", "colour", "red"), "now red", id="change an attribute"),
        pytest.param(
            Condition("change_attribute", "background", "grey"), "now grey background", id="change background"
        ),
        pytest.param(Condition("focus_object", noun="blue star"), "same blue star", id="keep an object"),
        pytest.param(Condition("change_object", noun="star"), "now a star", id="add an object"),
    ],
)
def test_the_benchmarks_text_goes_through_its_modes_template(condition: Condition, expected: str) -> None:
    assert compose_text(condition.mode, condition.bare) == expected
    assert condition.mode in CONDITION_TEMPLATES
