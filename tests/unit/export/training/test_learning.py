"""Training the encoders and the Combiner: it learns, it stops in time, and a stopped run ends as an unbroken one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.training.corpus import corpus
from tests.unit.export.training.scenes import draw

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402 - only where torch is installed

from likewise.export.combiner import Combiner  # noqa: E402
from likewise.export.networks import ImageConfig  # noqa: E402
from likewise.export.training.checkpoint import Checkpoint, State  # noqa: E402
from likewise.export.training.composing import Material, train_combiner  # noqa: E402
from likewise.export.training.contrastive import Corpus, EncoderTrainer, common_phrases  # noqa: E402
from likewise.export.training.encoders import TrainableFamily, fresh  # noqa: E402
from likewise.export.training.mining import mine  # noqa: E402
from likewise.export.training.plans import CombinerPlan, EncoderPlan  # noqa: E402
from likewise.export.training.progress import TrainingError  # noqa: E402
from likewise.export.training.wording import vocabulary_texts  # noqa: E402

_PLAN = CombinerPlan(steps=40, queries=64, shared=32, check_every=10, patience=9)
_DIM = 64
_TINY = ImageConfig(dim=16, widths=(4, 6, 8, 8), conjunctions=16, hidden=16)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def material() -> Material:
    """Features in which every fact has a direction of its own, so that composing can be learnt."""
    told = corpus(200)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((len(told.facts.vocabulary) + 1, _DIM)).astype(np.float32)
    directions[-1] = 0
    images = directions[told.facts.rows].sum(1)
    flat = np.asarray([list(row) for row in told.triplets.texts])
    unique, inverse = np.unique(flat, return_inverse=True)
    words = {word: rng.standard_normal(_DIM).astype(np.float32) for text in unique for word in text.split()}
    texts = np.stack([np.sum([words[word] for word in text.split()], 0) for text in unique])
    wordings = inverse.reshape(flat.shape)
    return Material(images[None], texts, wordings, told.triplets, told.facts, np.arange(200))


def _constant(combiner: Combiner) -> float:
    return 0.0


class _Stop(Exception):
    """Someone pulls the plug."""


def _stop_at(step: int, steps: int) -> Callable[[str, float, str], None]:
    def progress(stage: str, share: float, note: str) -> None:
        if round(share * steps) == step:
            raise _Stop

    return progress


def test_a_stopped_combiner_run_ends_as_an_unbroken_one(material: Material, tmp_path: Path) -> None:
    def score(combiner: Combiner) -> float:
        with torch.no_grad():
            return -float(combiner(torch.ones(1, _DIM), torch.ones(1, _DIM))[0, 0])

    whole, best, steps = train_combiner(material, _PLAN, Checkpoint(tmp_path / "a.pt", {"run": 1}), validate=score)
    broken = Checkpoint(tmp_path / "b.pt", {"run": 1})
    with pytest.raises(_Stop):
        train_combiner(material, _PLAN, broken, validate=score, progress=_stop_at(25, 40))
    resumed, again, total = train_combiner(material, _PLAN, broken, validate=score)

    assert (again, total) == (best, steps)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_combiner_learns_to_find_the_target(material: Material, tmp_path: Path) -> None:
    def share_found(combiner: Combiner) -> float:
        triplets = material.triplets
        query = np.arange(0, len(triplets), 5)
        with torch.no_grad():
            composed = combiner(
                torch.from_numpy(material.images[0, triplets.reference[query]]),
                torch.from_numpy(material.texts[material.wordings[query, 0]]),
            )
        units = torch.nn.functional.normalize(torch.from_numpy(material.images[0]), dim=1)
        own = np.concatenate([triplets.target[query][:, None], np.maximum(triplets.negatives[query], 0)], 1)
        scores = torch.einsum("qd,qcd->qc", composed, units[torch.from_numpy(own)])
        return float((scores.argmax(1) == 0).float().mean())

    plan = CombinerPlan(steps=150, check_every=50, dropout=0.1)
    _, best, _ = train_combiner(material, plan, Checkpoint(tmp_path / "c.pt", {}), validate=share_found)

    assert best > 0.6  # chance is one in seven


def test_training_stops_when_patience_is_out_and_keeps_the_best_weights(material: Material, tmp_path: Path) -> None:
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6, 0.95])
    seen: list[dict[str, Tensor]] = []

    def score(combiner: Combiner) -> float:
        seen.append({name: value.clone() for name, value in combiner.state_dict().items()})
        return next(scores)

    plan = CombinerPlan(steps=100, queries=16, shared=16, check_every=5, patience=3)
    combiner, best, steps = train_combiner(material, plan, Checkpoint(tmp_path / "c.pt", {}), validate=score)

    assert (best, steps) == (0.9, 25)
    assert all(torch.equal(value, seen[1][name]) for name, value in combiner.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused_and_so_is_a_damaged_one(material: Material, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    plan = CombinerPlan(steps=2, queries=8, shared=8, check_every=1)
    train_combiner(material, plan, Checkpoint(path, {"corpus": "a", "plan": 1}), validate=_constant)

    with pytest.raises(TrainingError, match=r"c\.pt belongs to a run with other settings or data \(corpus differ\)"):
        train_combiner(material, plan, Checkpoint(path, {"corpus": "b", "plan": 1}), validate=_constant)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
        train_combiner(material, plan, Checkpoint(path, {}), validate=_constant)


def test_patience_counts_looks_since_the_best_one() -> None:
    state, modules = State(), {"m": torch.nn.Linear(1, 1)}
    for score in (0.1, 0.3, 0.2, 0.3):
        state.look(score, modules)

    assert not state.patience_is_out(3)
    assert state.patience_is_out(2)


@pytest.fixture(scope="module")
def pictures() -> Corpus:
    told = corpus(120)
    pixels = np.stack([np.asarray(draw(scene)).transpose(2, 0, 1) for scene in told.scenes])
    training, validation = np.arange(100), np.arange(100, 120)
    return Corpus(pixels, told.captions, told.facts, mine(told.facts, training, seed=0), training, validation)


def _family(pictures: Corpus, folder: Path) -> TrainableFamily:
    folder.mkdir()
    texts = [*pictures.captions, *(t for row in pictures.triplets.texts for t in row), *vocabulary_texts()]
    return fresh(texts, folder, seed=0, image=_TINY)


def test_a_stopped_encoder_run_ends_as_an_unbroken_one(pictures: Corpus, tmp_path: Path) -> None:
    plan = EncoderPlan(steps=12, batch=16, check_every=4, warmup=3)
    whole, broken = _family(pictures, tmp_path / "a"), _family(pictures, tmp_path / "b")

    best = EncoderTrainer(whole, pictures, plan, Checkpoint(tmp_path / "a.pt", {})).run()
    with pytest.raises(_Stop):
        EncoderTrainer(broken, pictures, plan, Checkpoint(tmp_path / "b.pt", {})).run(progress=_stop_at(6, 12))
    again = EncoderTrainer(broken, pictures, plan, Checkpoint(tmp_path / "b.pt", {})).run()

    assert again == best
    for module, other in ((whole.image, broken.image), (whole.text, broken.text)):
        for name, value in module.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_encoders_learn_from_captions(pictures: Corpus, tmp_path: Path) -> None:
    losses: list[float] = []
    plan = EncoderPlan(steps=30, batch=32, check_every=30, warmup=5, rate=3e-3)
    trainer = EncoderTrainer(_family(pictures, tmp_path / "a"), pictures, plan, Checkpoint(tmp_path / "a.pt", {}))

    score = trainer.run(progress=lambda stage, share, note: losses.append(float(note.split()[1].rstrip(","))))

    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert 0 < score <= 1


def test_frozen_norms_keep_their_statistics_while_weights_move(pictures: Corpus, tmp_path: Path) -> None:
    family = _family(pictures, tmp_path / "a")
    before = {name: value.clone() for name, value in family.image.state_dict().items()}

    plan = EncoderPlan(steps=3, batch=16, check_every=3, freeze_norms=True)
    EncoderTrainer(family, pictures, plan, Checkpoint(tmp_path / "a.pt", {})).run()

    after = family.image.state_dict()
    assert torch.equal(after["stem.1.running_mean"], before["stem.1.running_mean"])
    assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])


def test_common_phrases_are_the_corpus_own_nouns_with_and_without_attributes(pictures: Corpus) -> None:
    phrases = common_phrases(pictures.facts, pictures.training, 30)

    assert phrases[0] == "a background"
    assert len(phrases) == 30
    assert any(len(phrase.split()) == 3 for phrase in phrases)
