import numpy as np

from likewise.export.training.graph import CaptionGraph, Entity
from likewise.export.training.slots import learn_slots

NOUNS = ("vase", "bowl", "plate", "cup")
FINISHES = ("glossy", "matte", "crackled")
GLAZES = ("zaffre", "celadon", "tenmoku", "shino")  # in no list of ours


def _graphs(count: int = 300, *, seed: int = 0) -> list[CaptionGraph]:
    rng = np.random.default_rng(seed)

    def one(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    return [CaptionGraph((Entity(one(NOUNS), (one(FINISHES), one(GLAZES))),)) for _ in range(count)]


def test_words_that_stand_in_for_each_other_become_one_attribute() -> None:
    slots = learn_slots(_graphs()).slots

    assert {frozenset(slot.values) for slot in slots} == {frozenset(FINISHES), frozenset(GLAZES)}
    assert {slot.name for slot in slots} == {""}


def test_a_known_word_gives_its_attribute_the_name() -> None:
    graphs = [*_graphs(), *(CaptionGraph((Entity(noun, ("matte", "white")),)) for noun in NOUNS for _ in range(12))]

    named = {slot.name: set(slot.values) for slot in learn_slots(graphs).slots}

    assert named["colour"] == {*GLAZES, "white"}


def test_the_users_words_name_an_attribute() -> None:
    slots = learn_slots(_graphs(), names={"finish": frozenset({"matte", "glossy"})}).slots

    assert {slot.name: set(slot.values) for slot in slots}["finish"] == set(FINISHES)


def test_words_that_are_often_said_of_the_same_thing_are_different_attributes() -> None:
    both = [CaptionGraph((Entity("vase", ("tall", "thin")),)) for _ in range(40)]
    one = [CaptionGraph((Entity("vase", (word,)),)) for word in ("tall", "thin") for _ in range(20)]

    assert learn_slots([*both, *one]).slots == ()


def test_too_few_uses_prove_nothing() -> None:
    graphs = [CaptionGraph((Entity("vase", (word,)),)) for word in ("tall", "thin", "tall", "thin")]

    assert learn_slots(graphs).slots == ()


def test_a_word_is_a_value_of_one_attribute_at_most() -> None:
    index = learn_slots(_graphs(seed=3))

    words = [word for slot in index.slots for word in slot.values]
    assert len(words) == len(set(words))
    assert {word: index.slots[i].values for word, i in index.index().items()}.keys() == set(words)
