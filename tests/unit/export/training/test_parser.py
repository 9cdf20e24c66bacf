import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.export.training.scenes import caption, sample_scene

from likewise.export.training.parser import RuleParser

# Statistics come from the corpus, so even a test needs one: who is a noun shows in where the words stand.
CORPUS = (
    "a woman riding a horse on the beach",
    "a man riding a bicycle down the street",
    "a large striped red star left of a small blue circle on a grey background",
    "a red ring on a white background",
    "a photo of two dogs running on the beach",
    "a dog playing with a ball in the park",
    "an old woman in a red dress sitting on a wooden bench",
    "young man wearing a blue shirt and a hat",
    "a woman in black standing next to a brown horse",
    "the horse is brown",
    "a black dog",
    "a brown bicycle",
    "a blue ring next to a red star and a green circle on a white background",
    "a woman rides a horse",
    "a man plays a guitar",
    "there is a small white cat under the table",
)


@pytest.fixture(scope="module")
def read() -> dict[str, str]:
    return {text: str(graph) for text, graph in zip(CORPUS, RuleParser().parse(CORPUS), strict=True)}


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        (CORPUS[0], "woman; horse; beach (woman riding horse, horse on beach)"),
        (
            CORPUS[2],
            "large striped red star; small blue circle; grey background (star left of circle, star on background)",
        ),
        (CORPUS[7], "young man; blue shirt; hat (man wearing shirt, man wearing hat)"),
        (CORPUS[13], "woman; horse (woman rides horse)"),
        (CORPUS[15], "small white cat; table (cat under table)"),
    ],
)
def test_a_caption_is_read_into_things_attributes_and_relations(read: dict[str, str], text: str, graph: str) -> None:
    assert read[text] == graph


def test_a_noun_that_ends_like_a_verb_stays_a_noun(read: dict[str, str]) -> None:
    assert read["a red ring on a white background"] == "red ring; white background (ring on background)"


def test_a_description_without_a_noun_belongs_to_the_thing_before(read: dict[str, str]) -> None:
    assert read["the horse is brown"] == "brown horse"
    assert read[CORPUS[8]] == "black woman; brown horse (woman standing next to horse)"


def test_a_plural_is_read_as_the_singular_that_the_corpus_knows(read: dict[str, str]) -> None:
    assert read["a photo of two dogs running on the beach"].startswith("dog; beach")


def test_a_background_belongs_to_the_subject_however_far_it_stands(read: dict[str, str]) -> None:
    assert "ring on background" in read[CORPUS[12]]


@pytest.mark.parametrize("text", ["", "   ", ".,;", "of the and", "\u4e2d\u6587 \u0000 \U0001f600"])
def test_what_cannot_be_read_gives_a_graph_all_the_same(text: str) -> None:
    (graph,) = RuleParser().parse([text])

    assert len(graph.entities) <= 1


@given(st.lists(st.text(max_size=60), max_size=8))
def test_any_text_is_parsed_without_an_error(texts: list[str]) -> None:
    graphs = RuleParser().parse(texts)

    assert len(graphs) == len(texts)
    for graph in graphs:
        assert all(
            0 <= r.subject < len(graph.entities) and 0 <= r.object < len(graph.entities) for r in graph.relations
        )


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**16))
def test_words_that_no_dictionary_was_asked_for_are_read_as_they_were_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(120)]
    texts = [caption(rng, scene, silence=0) for scene in scenes]

    graphs = RuleParser().parse(texts)

    for scene, graph in zip(scenes, graphs, strict=True):
        *things, ground = graph.entities
        assert (ground.head, ground.attributes) == ("background", (scene.background,))
        assert [thing.head for thing in things] == [thing.shape for thing in scene.things]
        for thing, drawn in zip(things, scene.things, strict=True):
            assert set(thing.attributes) - {"large", "small"} == {drawn.colour, drawn.texture}
