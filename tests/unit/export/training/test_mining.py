"""Mined triplets against what was drawn: the captions of these scenes say everything, so mining must be right."""

import numpy as np
import pytest
from tests.unit.export.training.corpus import Corpus, corpus
from tests.unit.export.training.scenes import VALUES, Scene

from likewise.export.training.facts import collect
from likewise.export.training.graph import CaptionGraph, Entity, Relation
from likewise.export.training.mining import excused, mine
from likewise.export.training.parser import RuleParser
from likewise.export.training.slots import Slot, Slots, learn_slots
from likewise.export.training.wording import FRAMES, KINDS, Condition

_DRAWN = {"colour": "colour", "pattern": "texture", "kind": "shape"}


@pytest.fixture(scope="module")
def told() -> Corpus:
    return corpus()


def _of_kind(told: Corpus, kind: str) -> list[int]:
    return np.flatnonzero(told.triplets.kind == KINDS.index(kind)).tolist()


def _scene(told: Corpus, row: int) -> Scene:
    return told.scenes[int(row)]


def test_all_four_kinds_are_mined(told: Corpus) -> None:
    counts = told.triplets.counts()

    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 100


def test_keeping_an_attribute_finds_the_same_value_on_something_else(told: Corpus) -> None:
    for i in _of_kind(told, "focus_attribute"):
        condition = told.triplets.conditions[i]
        if condition.attribute not in _DRAWN:
            continue
        name = _DRAWN[condition.attribute]
        reference, target = _scene(told, told.triplets.reference[i]), _scene(told, told.triplets.target[i])
        assert reference.value(name) == target.value(name)
        for row in told.triplets.negatives[i]:
            assert row < 0 or _scene(told, row).value(name) != reference.value(name)


def test_changing_an_attribute_finds_the_wanted_value_with_the_subject_kept(told: Corpus) -> None:
    seen = set()
    for i in _of_kind(told, "change_attribute"):
        condition = told.triplets.conditions[i]
        reference, target = _scene(told, told.triplets.reference[i]), _scene(told, told.triplets.target[i])
        named = [name for name, values in VALUES.items() if condition.value in values]
        name = named[0] if named else "size"
        seen.add(name)
        if name == "background":
            assert target.background == condition.value != reference.background
        elif name != "size" and not condition.noun:
            assert target.value(name) == condition.value != reference.value(name)
        if name not in ("shape", "size") and not condition.noun:
            assert target.value("shape") == reference.value("shape")
    assert {"colour", "texture", "background", "shape"} <= seen


def test_keeping_an_object_finds_it_elsewhere(told: Corpus) -> None:
    for i in _of_kind(told, "focus_object"):
        noun = told.triplets.conditions[i].noun.split()[-1]
        reference, target = _scene(told, told.triplets.reference[i]), _scene(told, told.triplets.target[i])
        if noun == "background":
            assert reference.background == target.background
            continue
        kept = next(thing for thing in reference.things if thing.shape == noun)
        found = [t for t in target.things if t.shape == noun]
        # What the thing is like has to be the same too, whether the condition says it or not.
        assert (kept.colour, kept.texture) in {(t.colour, t.texture) for t in found}


def test_adding_an_object_finds_the_subject_with_it(told: Corpus) -> None:
    for i in _of_kind(told, "change_object"):
        words = told.triplets.conditions[i].noun.split()
        reference, target = _scene(told, told.triplets.reference[i]), _scene(told, told.triplets.target[i])
        assert words[-1] in {t.shape for t in target.things} - {t.shape for t in reference.things}
        assert target.things[0].shape == reference.things[0].shape


def test_a_negative_is_never_the_target_or_the_reference(told: Corpus) -> None:
    triplets = told.triplets

    assert not (triplets.negatives == triplets.target[:, None]).any()
    assert not (triplets.negatives == triplets.reference[:, None]).any()
    assert not (triplets.target == triplets.reference).any()
    assert (triplets.negatives >= 0).sum(1).mean() > 4


def test_only_the_given_images_take_part() -> None:
    told = corpus()
    rows = np.arange(0, 300, 2)

    mined = mine(told.facts, rows, seed=0)

    used = np.unique(np.concatenate([mined.reference, mined.target, mined.negatives[mined.negatives >= 0]]))
    assert len(mined) > 0
    assert set(used.tolist()) <= set(rows.tolist())


def test_the_same_seed_gives_the_same_triplets_and_another_one_others() -> None:
    told, rows = corpus(), np.arange(150)

    first, again, other = (mine(told.facts, rows, seed=seed) for seed in (3, 3, 4))

    assert np.array_equal(first.target, again.target)
    assert np.array_equal(first.negatives, again.negatives)
    assert first.texts == again.texts
    assert not (len(first) == len(other) and np.array_equal(first.target, other.target))


def test_an_image_that_meets_the_condition_is_no_negative_in_the_batch(told: Corpus) -> None:
    queries = np.asarray(_of_kind(told, "focus_attribute")[:50])
    rows = np.arange(len(told.scenes))

    spared = excused(told.triplets, queries, told.facts, rows)

    for query, mask in zip(queries, spared, strict=True):
        name = _DRAWN.get(told.triplets.conditions[query].attribute)
        if name is None:
            continue
        value = _scene(told, told.triplets.reference[query]).value(name)
        assert mask.tolist() == [scene.value(name) == value for scene in told.scenes]


def test_for_a_change_only_images_of_the_same_content_are_spared(told: Corpus) -> None:
    queries = np.asarray(_of_kind(told, "change_attribute")[:50])

    spared = excused(told.triplets, queries, told.facts, np.arange(len(told.scenes)))

    assert spared[np.arange(len(queries)), told.triplets.target[queries]].all()
    assert not spared[np.arange(len(queries)), told.triplets.reference[queries]].any()
    for query, mask in zip(queries, spared, strict=True):
        content = _scene(told, told.triplets.target[query]).content
        assert all(_scene(told, row).content == content for row in np.flatnonzero(mask).tolist())


def test_images_that_agree_in_all_else_too_are_no_answer_to_keeping_one_attribute() -> None:
    texts = [f"a {colour} wooden cup on a table" for colour in ("red", "blue") for _ in range(6)]
    graphs = RuleParser().parse(texts)
    facts = collect(graphs, learn_slots(graphs))

    mined = mine(facts, np.arange(len(texts)), seed=0)

    assert mined.counts()["change_attribute"] > 0
    assert mined.counts()["focus_attribute"] == 0


def test_what_a_caption_leaves_unsaid_is_neither_kept_nor_contradicted() -> None:
    texts = [f"a {colour} cup" for colour in ("red", "blue", "red", "blue", "green", "green") for _ in range(4)]
    texts += ["a cup"] * 6 + [f"a {colour} plate" for colour in ("red", "blue", "green") for _ in range(4)]
    graphs = RuleParser().parse(texts)
    facts = collect(graphs, learn_slots(graphs))

    mined = mine(facts, np.arange(len(texts)), seed=0)
    silent = {i for i, text in enumerate(texts) if text == "a cup"}

    for i in np.flatnonzero(mined.kind == KINDS.index("focus_attribute")).tolist():
        if mined.conditions[i].attribute == "colour":
            assert not silent & set(mined.negatives[i].tolist())
            assert excused(mined, np.asarray([i]), facts, np.asarray(sorted(silent))).all()


def test_images_that_share_the_subject_alone_are_no_change_of_one_attribute() -> None:
    texts = ["a red cup on a table beside a plate", "a blue cup in a sink under a window"] * 6
    graphs = RuleParser().parse(texts)
    facts = collect(graphs, learn_slots(graphs))

    assert mine(facts, np.arange(len(texts)), seed=0).counts()["change_attribute"] == 0


def test_a_condition_says_relation_and_object_where_the_caption_tells_an_activity() -> None:
    def photo(verb: str, thing: str) -> CaptionGraph:
        entities = (Entity("woman"), Entity(thing), Entity("beach"))
        return CaptionGraph(entities, (Relation(0, verb, 1), Relation(0, "on", 2)))

    graphs = [photo(*pair) for pair in (("riding", "horse"), ("holding", "kite"), ("walking", "dog")) for _ in range(4)]
    graphs += [CaptionGraph((Entity("woman"), Entity("beach")), (Relation(0, "on", 1),))] * 4

    mined = mine(collect(graphs, Slots(())), np.arange(len(graphs)), seed=0)

    said = {c.bare for c in mined.conditions if c.kind == "change_object"}
    assert {"riding a horse", "holding a kite", "walking a dog"} <= said


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (Condition("focus_attribute", attribute="colour"), "colour"),
        (Condition("focus_attribute", value="glazed"), "glazed"),
        (Condition("change_attribute", attribute="colour", value="teal"), "teal"),
        (Condition("change_attribute", attribute="kind", value="arrow"), "an arrow"),
        (Condition("change_attribute", noun="background", value="mint"), "mint background"),
        (Condition("focus_object", noun="teal star"), "teal star"),
        (Condition("change_object", noun="long sleeves"), "long sleeves"),
        (Condition("change_object", noun="horse", relation="riding"), "riding a horse"),
    ],
)
def test_a_condition_has_a_plain_text_as_benchmarks_ask_it(condition: Condition, text: str) -> None:
    assert condition.bare == text
    assert condition.mode in FRAMES


def test_slots_without_a_name_are_asked_for_by_their_value() -> None:
    graphs = [
        CaptionGraph((Entity(noun, (word,)),))
        for noun in ("vase", "bowl")
        for word in ("raku", "shino")
        for _ in range(6)
    ]
    facts = collect(graphs, Slots((Slot("", ("raku", "shino")),)))

    mined = mine(facts, np.arange(len(graphs)), seed=0)

    kept = {c.bare for c in mined.conditions if c.kind == "focus_attribute" and c.attribute != "kind"}
    assert kept == {"raku", "shino"}
