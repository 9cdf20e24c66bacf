import numpy as np
from tests.unit.export.training.corpus import corpus

from likewise.export.training.mining import excused, mine
from likewise.export.training.trials import CANDIDATES, HARD, build_trials, features_of
from likewise.export.training.wording import KINDS


def test_every_gallery_holds_the_target_once_and_nothing_that_meets_the_condition() -> None:
    told, rows = corpus(), np.arange(100)
    mined = mine(told.facts, rows, seed=0, negatives=HARD)

    trials = build_trials(mined, told.facts, rows, seed=0)

    targets = {(int(r), int(t)) for r, t in zip(mined.reference, mined.target, strict=True)}
    assert set(trials) == set(KINDS)
    for task, made in trials.items():
        assert made.candidates.shape == (len(made), CANDIDATES[task])
        assert set(made.candidates.ravel().tolist()) <= set(rows.tolist())
        for reference, gallery, target in zip(made.reference, made.candidates, made.target, strict=True):
            assert len(set(gallery.tolist())) == CANDIDATES[task]
            assert int(reference) not in gallery
            assert (int(reference), int(gallery[target])) in targets


def test_images_that_fill_a_gallery_up_do_not_meet_the_condition() -> None:
    told, rows = corpus(), np.arange(100)
    mined = mine(told.facts, rows, seed=0, negatives=2)

    trials = build_trials(mined, told.facts, rows, seed=0)["focus_attribute"]

    hard = {int(row) for row in mined.negatives[mined.negatives >= 0]}
    queries: dict[tuple[int, int, str], int] = {}
    for i in np.flatnonzero(mined.kind == 0).tolist():
        queries[int(mined.reference[i]), int(mined.target[i]), mined.conditions[i].bare] = i
    checked = 0
    for i, text in enumerate(trials.bare):
        gallery, target = trials.candidates[i], int(trials.target[i])
        query = queries[int(trials.reference[i]), int(gallery[target]), text]
        met = excused(mined, np.asarray([query]), told.facts, gallery)[0]
        assert met.tolist() == [column == target for column in range(len(gallery))]
        checked += len(set(gallery.tolist()) - hard)
    assert checked > 0


def test_the_targets_place_says_nothing() -> None:
    told, rows = corpus(), np.arange(300)
    mined = mine(told.facts, rows, seed=0, negatives=HARD)

    trials = build_trials(mined, told.facts, rows, seed=0)["change_attribute"]

    counts = np.bincount(trials.target, minlength=15)
    assert counts.min() > 0
    assert counts.max() < 3 * counts.mean()


def test_a_limit_spreads_templates_over_the_references() -> None:
    told, rows = corpus(), np.arange(300)
    mined = mine(told.facts, rows, seed=0, negatives=HARD)

    trials = build_trials(mined, told.facts, rows, seed=0, most=100)["focus_attribute"]

    assert len(trials) == len(set(trials.reference.tolist())) == 100


def test_features_are_those_of_the_named_rows_with_references_as_clusters() -> None:
    told, rows = corpus(), np.arange(60)
    trials = build_trials(mine(told.facts, rows, seed=0, negatives=HARD), told.facts, rows, seed=0)["focus_attribute"]
    images = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    texts = {text: np.full(6, i, np.float32) for i, text in enumerate({*trials.bare, *trials.composed})}

    features = features_of(trials, images, lambda asked: np.stack([texts[text] for text in asked]))

    np.testing.assert_array_equal(features.references, images[trials.reference])
    assert np.allclose(np.linalg.norm(features.candidates, axis=2), 1, atol=1e-6)
    np.testing.assert_array_equal(features.bare, np.stack([texts[text] for text in trials.bare]))
    np.testing.assert_array_equal(features.composed, np.stack([texts[text] for text in trials.composed]))
    np.testing.assert_array_equal(features.clusters, trials.reference)
