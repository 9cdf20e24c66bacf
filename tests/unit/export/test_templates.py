import numpy as np
import pytest

from likewise.export.shapes.pool import sample_cluster
from likewise.export.shapes.templates import (
    ATTRIBUTES,
    CANDIDATES,
    DESIGNS,
    SPLITS,
    Template,
    build_templates,
)
from likewise.export.shapes.world import TEST_PAIRS, TRAINING_PAIRS, VALIDATION_PAIRS, Pair, Scene

_COUNT = 60


def _main(scene: Scene, attribute: str) -> str:
    assert scene.main is not None
    return scene.background if attribute == "background" else getattr(scene.things[scene.main], attribute)


def _pairs(scene: Scene) -> set[Pair]:
    return {thing.pair for thing in scene.things}


def _content(scene: Scene) -> tuple[object, ...]:
    return (scene.background, sorted((t.shape, t.colour, t.texture, t.size) for t in scene.things))


def _build(task: str, design: str = "strict", split: str = "held-out") -> list[Template]:
    return build_templates(task, _COUNT, split=SPLITS[split], design=design)


def _wrong(template: Template) -> list[Scene]:
    return [scene for i, scene in enumerate(template.candidates) if i != template.target]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("task", CANDIDATES)
def test_galleries_have_the_promised_size_and_the_target_no_fixed_place(task: str, design: str) -> None:
    templates = _build(task, design)

    assert {len(t.candidates) for t in templates} == {CANDIDATES[task]}
    assert len({t.target for t in templates}) > CANDIDATES[task] / 2


@pytest.mark.parametrize("task", CANDIDATES)
def test_templates_are_reproducible_and_differ_between_seeds_and_splits(task: str) -> None:
    first = build_templates(task, 5, split=SPLITS["held-out"], design="strict")

    assert first == build_templates(task, 5, split=SPLITS["held-out"], design="strict")
    assert first != build_templates(task, 5, split=SPLITS["held-out"], design="strict", seed=1)
    assert first != build_templates(task, 5, split=SPLITS["seen"], design="strict")


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("task", CANDIDATES)
def test_the_object_of_a_held_out_template_has_a_pair_that_training_never_shows(task: str, design: str) -> None:
    for template in _build(task, design):
        target = template.candidates[template.target]
        shown = _pairs(template.reference) | _pairs(target)

        assert shown & TEST_PAIRS
        assert not shown & VALIDATION_PAIRS
        if task.startswith("change"):
            assert _pairs(target) & TEST_PAIRS
        if task == "focus_object":
            assert _pairs(template.reference) & _pairs(target) & TEST_PAIRS


@pytest.mark.parametrize("task", CANDIDATES)
def test_seen_and_validation_templates_show_no_test_pair(task: str) -> None:
    for split in ("seen", "validation", "validation-seen"):
        for template in _build(task, split=split):
            for scene in (template.reference, *template.candidates):
                assert not _pairs(scene) & TEST_PAIRS


def test_no_evaluation_scene_is_a_training_scene() -> None:
    trained = {
        scene for cluster in range(200) for scene in sample_cluster(np.random.default_rng((1, cluster)), TRAINING_PAIRS)
    }
    for task in CANDIDATES:
        for template in _build(task, split="seen"):
            assert not trained & {template.reference, *template.candidates}
    assert len({split.stream for split in SPLITS.values()}) == len(SPLITS)


@pytest.mark.parametrize("design", DESIGNS)
def test_only_the_target_keeps_the_attribute_and_it_keeps_nothing_else(design: str) -> None:
    for template in _build("focus_attribute", design):
        attribute = template.condition.attribute
        wanted = _main(template.reference, attribute)
        target = template.candidates[template.target]

        assert _main(target, attribute) == wanted
        assert all(_main(s, attribute) != wanted for s in _wrong(template))
        for other in ATTRIBUTES:
            assert other == attribute or _main(target, other) != _main(template.reference, other)


def test_strict_wrong_candidates_keep_all_of_one_side_but_the_attribute() -> None:
    for template in _build("focus_attribute"):
        sides = (template.reference, template.candidates[template.target])
        counts = [0, 0]
        for scene in _wrong(template):
            for i, side in enumerate(sides):
                differing = [a for a in ATTRIBUTES if _main(scene, a) != _main(side, a)]
                counts[i] += differing == [template.condition.attribute]

        assert sum(counts) == 9
        assert min(counts) == 4


def test_some_wrong_candidates_give_the_wanted_value_to_the_wrong_object() -> None:
    misplaced = 0
    for template in _build("change_attribute"):
        for scene in _wrong(template):
            values = [getattr(t, template.condition.attribute, None) for t in scene.things]
            misplaced += template.condition.value in values and (
                _main(scene, template.condition.attribute) != template.condition.value
            )

    assert misplaced > _COUNT / 4


@pytest.mark.parametrize("design", DESIGNS)
def test_only_the_target_is_the_reference_with_the_attribute_changed(design: str) -> None:
    for template in _build("change_attribute", design):
        changed = template.condition.attribute
        expected = {a: _main(template.reference, a) for a in ATTRIBUTES} | {changed: template.condition.value}
        candidates = [{a: _main(s, a) for a in ATTRIBUTES} for s in template.candidates]

        assert [c == expected for c in candidates].count(True) == 1
        assert candidates[template.target] == expected


@pytest.mark.parametrize("design", DESIGNS)
def test_only_the_target_holds_the_named_object_of_the_reference(design: str) -> None:
    for template in _build("focus_object", design):
        target = template.candidates[template.target]
        shared = _pairs(template.reference) & _pairs(target)

        assert len(shared) == 1
        shape, colour = next(iter(shared))
        assert template.condition.noun in (shape, f"{colour} {shape}")
        assert sum(t.shape == shape for t in template.reference.things) == 1
        assert target.background != template.reference.background
        assert all(not shared & _pairs(scene) for scene in _wrong(template))


@pytest.mark.parametrize("design", DESIGNS)
def test_only_the_target_is_the_reference_plus_the_object(design: str) -> None:
    for template in _build("change_object", design):
        *colour, shape = template.condition.noun.split()

        def holds(
            scene: Scene, *, template: Template = template, shape: str = shape, colour: list[str] = colour
        ) -> bool:
            left = [(t.shape, t.colour, t.texture) for t in scene.things]
            for thing in template.reference.things:
                key = (thing.shape, thing.colour, thing.texture)
                if key not in left:
                    return False
                left.remove(key)
            same_ground = scene.background == template.reference.background
            return same_ground and len(left) == 1 and left[0][0] == shape and colour in ([], [left[0][1]])

        assert [holds(scene) for scene in template.candidates].index(True) == template.target
        assert sum(holds(scene) for scene in template.candidates) == 1


def test_the_re_rendered_reference_is_in_strict_change_galleries_only() -> None:
    for task in ("change_attribute", "change_object"):
        for template in _build(task):
            assert _content(template.reference) in [_content(s) for s in _wrong(template)]
    for template in _build("change_object", "soft"):
        assert _content(template.reference) not in [_content(s) for s in _wrong(template)]


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(ValueError, match="design must be one of"):
        _build("change_object", "hard")
