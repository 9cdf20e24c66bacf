"""From a survey to a registered composer: pictures, encoders, features, composer, figures, publication.

Whatever the encoders are (frozen, fine-tuned, fresh), they are exported first and used through ONNX Runtime from then
on: the composer is trained and measured on the features that it will be served.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from likewise.export.combiner import Combiner
from likewise.export.evaluate import Features
from likewise.export.model_repository import Family, load_repository
from likewise.export.preprocess import Preprocessing
from likewise.export.repository import write_family
from likewise.export.training import wording
from likewise.export.training.checkpoint import Checkpoint
from likewise.export.training.closed_form import (
    BETAS,
    PHRASES,
    WEIGHTS,
    PhraseBasis,
    WeightedSum,
    compose_ranks,
    phrase_root,
    tune,
    two_block_features,
    two_block_images,
    two_block_texts,
    unframed,
)
from likewise.export.training.composing import Material, train_combiner
from likewise.export.training.contrastive import Corpus, EncoderTrainer, common_phrases
from likewise.export.training.encoders import TrainableFamily, fresh, restore
from likewise.export.training.frozen import FrozenEncoders, encode_corpus, kept
from likewise.export.training.measure import Report, measure
from likewise.export.training.pictures import BATCH, Decoder, decode, decode_plainly
from likewise.export.training.plans import Options
from likewise.export.training.progress import Progress, silent
from likewise.export.training.register import Registered, check_target, register
from likewise.export.training.source import Problem
from likewise.export.training.survey import Survey, training_trials
from likewise.export.training.trials import features_of
from likewise.export.training.words import WORDS

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Attributes:
        report: Figures on the test templates.
        registered: What was written where.
        setup: What was chosen or how long was trained, in words.
        unknown_words: Words of the captions that the text encoder does not know.
    """

    report: Report
    registered: Registered
    setup: str
    unknown_words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain dicts, lists, strings and numbers."""
        return {
            "report": self.report.to_json(),
            "setup": self.setup,
            "unknown words": list(self.unknown_words),
            "models": dict(self.registered.versions),
            "space": self.registered.space,
            "repository": str(self.registered.path),
        }


OnProblems = Callable[[tuple[Problem, ...]], None]


def train(
    surveyed: Survey,
    options: Options,
    *,
    decoder: Decoder = decode_plainly,
    on_problems: OnProblems = lambda problems: None,
    trainable: TrainableFamily | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Train what the options say, measure it on the test templates, and register it.

    Args:
        surveyed: The corpus.
        options: What to train.
        decoder: Of image files; the server's, so that training sees what serving will.
        on_problems: Told of images that could not be read, which are left out; may raise to refuse.
        trainable: Encoders of the caller's own, for "fine-tune"; those of ``options.family`` by default.
        progress: Told of every stage.

    Raises:
        TrainingError: The material or the family does not do; ``options.out`` is as it was.
        ManifestError: A repository is damaged or has no such family.
        ParityError: A graph differs from its module; ``options.out`` is as it was.
    """
    check_target(options.out, options.name)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.encoders == "frozen":
        family, stored = load_repository(options.base).family(options.family), None
    else:
        module = _trainable(surveyed, options, trainable)
        stored, bad = _pixels(surveyed, module.preprocessing, options.work, decoder, progress)
        surveyed = _leave_out(surveyed, bad, on_problems, progress)
        family = _train_encoders(surveyed, options, module, stored, progress)
    encoders = FrozenEncoders(family, threads=options.threads)
    images, bad = _features(surveyed, options, encoders, stored, decoder, progress)
    if stored is None:
        surveyed = _leave_out(surveyed, bad, on_problems, progress)
    test = {task: features_of(trials, images[0], encoders.encode_texts) for task, trials in surveyed.test.items()}
    validation = {task: features_of(t, images[0], encoders.encode_texts) for task, t in surveyed.validation.items()}
    made = _COMPOSERS[options.method](surveyed, options, encoders, images, validation, progress)
    progress("measuring", 0.0, "")
    composed = test if made.root is None else {t: two_block_features(f, made.root) for t, f in test.items()}
    if not made.framed:
        composed = {task: unframed(features) for task, features in composed.items()}
    report = measure(test, lambda features: compose_ranks(made.composer, features), composed)
    progress("exporting", 0.0, "")
    samples = (images[0, surveyed.split.test], encoders.encode_texts(surveyed.triplets.texts[0]))
    if made.root is not None:
        samples = (two_block_images(samples[0], made.root), two_block_texts(samples[1]))
    registered = register(
        options.out,
        options.name,
        family,
        made.composer,
        samples,
        notes=made.notes,
        evaluation={"held-out templates": report.summary(), "setup": made.setup},
        root=made.root,
        frames=wording.FRAMES if made.framed else dict.fromkeys(wording.FRAMES, "{}"),
    )
    words = sorted({word for one in surveyed.items for word in WORDS.findall(one.caption.lower()) if word.isalpha()})
    return Outcome(report, registered, made.setup, tuple(encoders.unknown_words(words)))


@dataclass(frozen=True, slots=True)
class _Made:
    composer: nn.Module
    setup: str
    notes: str
    framed: bool = True
    root: F32 | None = None


def _leave_out(surveyed: Survey, bad: Mapping[int, str], on_problems: OnProblems, progress: Progress) -> Survey:
    if not bad:
        return surveyed
    on_problems(tuple(Problem(surveyed.items[row].place, reason) for row, reason in sorted(bad.items())))
    return surveyed.without(sorted(bad), progress=progress)


def _trainable(surveyed: Survey, options: Options, given: TrainableFamily | None) -> TrainableFamily:
    if given is not None:
        return given
    texts = [one.caption for one in surveyed.items]
    texts += [text for texts in surveyed.triplets.texts for text in texts] + wording.vocabulary_texts()
    seed = options.encoder_plan.seed
    if options.encoders == "train":
        return fresh(texts, options.work, seed=seed)
    return restore(load_repository(options.base).family(options.family), texts, options.work, seed=seed)


def _train_encoders(
    surveyed: Survey, options: Options, module: TrainableFamily, stored: U8, progress: Progress
) -> Family:
    plan = options.encoder_plan
    if options.encoders == "fine-tune":
        plan = replace(plan, freeze_norms=True)
    captions = [one.caption for one in surveyed.items]
    split = surveyed.split
    corpus = Corpus(stored, captions, surveyed.facts, surveyed.triplets, split.training, split.validation)
    identity = {"plan": asdict(plan), "corpus": surveyed.digest, "encoders": options.encoders, "family": options.family}
    checkpoint = Checkpoint(options.work / "encoders.pt", identity)
    EncoderTrainer(module, corpus, plan, checkpoint).run(progress=progress)
    progress("exporting the encoders", 0.0, "")
    parts = module.parts(options.name, captions[:64])
    repository = options.work / "encoders"
    write_family(repository, options.name, parts, dim=parts[0].output.shape[1])
    return load_repository(repository).family(options.name)


def _pixels(
    surveyed: Survey, spec: Preprocessing, work: Path, decoder: Decoder, progress: Progress
) -> tuple[U8, dict[int, str]]:
    """Pixels (n, 3, s, s) uint8, decoded once and kept in the work folder; and which could not be."""
    scale, shift = (np.asarray(x, np.float32)[:, None, None] for x in (spec.std, spec.mean))
    count = len(surveyed.items)

    def make(path: Path) -> dict[int, str]:
        store = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, spec.size, spec.size))
        bad: dict[int, str] = {}
        for batch in decode(surveyed.items, spec, decoder):
            bad |= batch.problems
            # Resized pictures are bytes before they are normalised, so nothing is lost by going back.
            values = np.rint((batch.pixels * scale + shift) * 255)
            stop = batch.start + len(values)
            store[batch.start : stop] = np.clip(values, 0, 255).astype(np.uint8)
            progress("decoding images", stop / count, f"{stop:,} of {count:,}")
        store.flush()
        return bad

    return kept(work / "pixels.npy", {"corpus": surveyed.digest, "preprocessing": asdict(spec)}, make)


def _features(
    surveyed: Survey,
    options: Options,
    encoders: FrozenEncoders,
    stored: U8 | None,
    decoder: Decoder,
    progress: Progress,
) -> tuple[F32, dict[int, str]]:
    """Raw image features (views, n, d), computed once for a corpus and a space; and which images could not be read."""
    seed = options.combiner_plan.seed

    def make(path: Path) -> dict[int, str]:
        bad: dict[int, str] = {}
        source = (
            _decoded(surveyed, encoders.preprocessing, decoder, bad) if stored is None else _stored(stored, encoders)
        )
        count = len(surveyed.items)
        features = encode_corpus(encoders, source, count, views=options.views, seed=seed, progress=progress)
        np.save(path, features)
        return bad

    identity = {"corpus": surveyed.digest, "space": encoders.space, "views": options.views, "seed": seed}
    features, bad = kept(options.work / "features.npy", identity, make)
    return np.array(features), bad


def _decoded(surveyed: Survey, spec: Preprocessing, decoder: Decoder, bad: dict[int, str]) -> Iterator[tuple[int, F32]]:
    for batch in decode(surveyed.items, spec, decoder):
        bad |= batch.problems
        yield batch.start, batch.pixels


def _stored(pixels: U8, encoders: FrozenEncoders) -> Iterator[tuple[int, F32]]:
    spec = encoders.preprocessing
    scale, shift = (np.asarray(x, np.float32)[:, None, None] for x in (spec.std, spec.mean))
    for start in range(0, len(pixels), BATCH):
        part = np.asarray(pixels[start : start + BATCH], np.float32) / np.float32(255)
        yield start, np.ascontiguousarray((part - shift) / scale)


def _combiner(
    surveyed: Survey,
    options: Options,
    encoders: FrozenEncoders,
    images: F32,
    validation: Mapping[str, Features],
    progress: Progress,
) -> _Made:
    plan = options.combiner_plan
    flat = np.asarray([list(row) for row in surveyed.triplets.texts])
    unique, inverse = np.unique(flat, return_inverse=True)
    progress("encoding conditions", 0.0, f"{len(unique):,} wordings")
    texts = encoders.encode_texts(unique.tolist())
    wordings = inverse.reshape(flat.shape).astype(np.int64)
    material = Material(images, texts, wordings, surveyed.triplets, surveyed.facts, surveyed.split.training)
    identity = {"plan": asdict(plan), "corpus": surveyed.digest, "space": encoders.space, "views": options.views}

    def score(combiner: Combiner) -> float:
        return float(np.mean([(1 / compose_ranks(combiner, f)).mean() for f in validation.values()]))

    checkpoint = Checkpoint(options.work / "combiner.pt", identity)
    combiner, best, steps = train_combiner(material, plan, checkpoint, validate=score, progress=progress)
    setup = f"{steps:,} steps, mean reciprocal rank {best:.3f} on the validation templates"
    notes = f"GeneCIS Combiner trained on {len(surveyed.triplets):,} mined triplets of {len(surveyed.items):,} images."
    return _Made(combiner, setup, notes)


def _sum(
    surveyed: Survey,
    options: Options,
    encoders: FrozenEncoders,
    images: F32,
    validation: Mapping[str, Features],
    progress: Progress,
) -> _Made:
    progress("tuning the weight", 0.0, "")
    mined = _training_features(surveyed, options, encoders, images)
    weight, framed, mean = tune(WeightedSum, WEIGHTS, mined)
    setup = f"text weight {weight:.2f}, {_texts(framed)}, mean R@1 {mean:.1f} on templates of the training images"
    return _Made(WeightedSum(weight).eval(), setup, f"Weighted sum of unit vectors, {setup}.", framed)


def _phrase_basis(
    surveyed: Survey,
    options: Options,
    encoders: FrozenEncoders,
    images: F32,
    validation: Mapping[str, Features],
    progress: Progress,
) -> _Made:
    progress("tuning beta", 0.0, "")
    phrases = common_phrases(surveyed.facts, surveyed.split.training, PHRASES)
    root = phrase_root(encoders.encode_texts(phrases))
    mined = {t: two_block_features(f, root) for t, f in _training_features(surveyed, options, encoders, images).items()}
    beta, framed, mean = tune(PhraseBasis, BETAS, mined)
    setup = f"{len(phrases)} phrases, beta {beta:.2f}, {_texts(framed)}, mean R@1 {mean:.1f} on training templates"
    return _Made(PhraseBasis(beta).eval(), setup, f"Two-block phrase basis, {setup}.", framed, root)


def _texts(framed: bool) -> str:
    return "texts in the frame of their mode" if framed else "texts as they are typed"


def _training_features(
    surveyed: Survey, options: Options, encoders: FrozenEncoders, images: F32
) -> dict[str, Features]:
    trials = training_trials(surveyed, seed=options.combiner_plan.seed)
    return {task: features_of(t, images[0], encoders.encode_texts) for task, t in trials.items()}


_COMPOSERS: Final = {"combiner": _combiner, "sum": _sum, "phrase-basis": _phrase_basis}
