"""What a corpus gives to learn from, before anything is trained: facts, splits, triplets, held-out templates."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.export.training.facts import Facts, collect
from likewise.export.training.graph import CaptionParser
from likewise.export.training.mining import Triplets, mine
from likewise.export.training.pictures import fingerprints
from likewise.export.training.progress import Progress, TrainingError, silent
from likewise.export.training.slots import learn_slots
from likewise.export.training.source import Captioned
from likewise.export.training.split import Split, split_images
from likewise.export.training.trials import HARD, Trials, build_trials
from likewise.export.training.wording import KINDS

I64 = npt.NDArray[np.int64]
MIN_TEMPLATES: Final = 20


@dataclass(frozen=True, slots=True)
class SurveyOptions:
    """How a corpus is read.

    Attributes:
        held_out: Share of the images that is kept for validation and for the test, half each.
        seed: Of the split and of every draw.
        names: Words that are values of an attribute, by its name.
        per_kind: Triplets of a kind per reference, at most.
        most_triplets: At most in all.
    """

    held_out: float = 0.2
    seed: int = 1
    names: Mapping[str, frozenset[str]] | None = None
    per_kind: int = 3
    most_triplets: int = 200_000


@dataclass(frozen=True, slots=True)
class Survey:
    """A corpus, read and mined; rows are positions in ``items``.

    Attributes:
        items: Images and captions.
        digest: SHA-256 of paths, captions and image files: which corpus this is, in hex.
        options: How it was read.
        facts: Read in the captions.
        split: By image.
        triplets: Mined from the training images.
        validation: Templates by task, of the validation images.
        test: Templates by task, of the test images.
    """

    items: Sequence[Captioned]
    digest: str
    options: SurveyOptions
    facts: Facts
    split: Split
    triplets: Triplets
    validation: Mapping[str, Trials]
    test: Mapping[str, Trials]

    def examples(self, per_kind: int, *, seed: int = 0) -> list[dict[str, str]]:
        """Some triplets of each kind as texts: kind, reference, condition, target, and a wrong candidate."""
        rng = np.random.default_rng(seed)
        rows = []
        for number, kind in enumerate(KINDS):
            found = rng.permutation(np.flatnonzero(self.triplets.kind == number))[:per_kind]
            for i in found.tolist():
                wrong = self.triplets.negatives[i]
                rows.append(
                    {
                        "kind": kind,
                        "reference": self.items[self.triplets.reference[i]].caption,
                        "condition": self.triplets.texts[i][0],
                        "target": self.items[self.triplets.target[i]].caption,
                        "wrong": self.items[wrong[0]].caption if wrong[0] >= 0 else "",
                    }
                )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Counts as plain numbers and texts."""
        slots = [{"name": slot.name, "values": list(slot.values)} for slot in self.facts.slots.slots]
        silent_captions = sum(not graph.entities for graph in self.facts.graphs)
        return {
            "images": len(self.items),
            "unread captions": silent_captions,
            "facts": len(self.facts.vocabulary),
            "attributes": slots,
            "split": {
                "training": len(self.split.training),
                "validation": len(self.split.validation),
                "test": len(self.split.test),
            },
            "triplets": self.triplets.counts(),
            "templates": {
                "validation": {task: len(trials) for task, trials in self.validation.items()},
                "test": {task: len(trials) for task, trials in self.test.items()},
            },
        }

    def without(self, rows: Sequence[int], *, progress: Progress = silent) -> "Survey":
        """The corpus without some images that turned out to be unreadable; the others keep their row and their part."""
        if not rows:
            return self
        parts = (self.split.training, self.split.validation, self.split.test)
        split = Split(*(part[~np.isin(part, rows)] for part in parts))
        return _mined(self.items, self.digest, self.options, self.facts, split, progress)

    def refuse_if_poor(self, least: int) -> None:
        """Refuse a corpus that too little was mined from.

        Raises:
            TrainingError: Fewer than ``least`` triplets, or fewer than ``MIN_TEMPLATES`` held-out templates.
        """
        counts = self.triplets.counts()
        told = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in counts.items())
        heads = Counter(graph.entities[0].head for graph in self.facts.graphs if graph.entities)
        common = ", ".join(f"{noun!r} {count} times" for noun, count in heads.most_common(3))
        if len(self.triplets) < least:
            raise TrainingError(
                f"only {len(self.triplets)} triplets could be mined from {len(self.split.training)} training images "
                f"({told}), at least {least} are needed (--min-triplets). Mining needs captions that share their "
                "subject and differ in an attribute or object; the most common subjects are "
                f"{common or 'none'}. More images, or captions that name attributes in the same words, help"
            )
        for part, trials in (("validation", self.validation), ("test", self.test)):
            found = sum(map(len, trials.values()))
            if found < MIN_TEMPLATES:
                raise TrainingError(
                    f"only {found} {part} templates could be mined from {len(getattr(self.split, part))} images, "
                    f"at least {MIN_TEMPLATES} are needed: more images, or a larger --held-out"
                )


def survey(
    items: Sequence[Captioned], parser: CaptionParser, options: SurveyOptions, *, progress: Progress = silent
) -> Survey:
    """Read and mine a corpus; images are fingerprinted, not decoded.

    Args:
        items: Images and captions.
        parser: Reads the captions.
        options: How.
        progress: Told of every stage.
    """
    progress("reading captions", 0.0, f"{len(items):,} captions")
    captions = [one.caption for one in items]
    graphs = parser.parse(captions)
    if len(graphs) != len(captions):
        raise TrainingError(f"the parser gave {len(graphs)} graphs for {len(captions)} captions")
    facts = collect(graphs, learn_slots(graphs, names=options.names))
    marks = fingerprints(items)
    split = split_images(marks, held_out=options.held_out, seed=options.seed)
    return _mined(items, _digest(items, marks), options, facts, split, progress)


def _mined(
    items: Sequence[Captioned], digest: str, options: SurveyOptions, facts: Facts, split: Split, progress: Progress
) -> Survey:
    triplets = mine(
        facts,
        split.training,
        seed=options.seed,
        per_kind=options.per_kind,
        most=options.most_triplets,
        progress=lambda share: progress("mining triplets", share, ""),
    )
    parts = []
    for rows in (split.validation, split.test):
        held = mine(facts, rows, seed=options.seed, negatives=HARD, per_kind=options.per_kind, most=20_000)
        parts.append(build_trials(held, facts, rows, seed=options.seed))
    return Survey(items, digest, options, facts, split, triplets, *parts)


def training_trials(surveyed: Survey, *, seed: int, most: int = 200) -> dict[str, Trials]:
    """Templates of the training images, for the one number that a composer without training has."""
    rows = surveyed.split.training
    if len(rows) > 4000:
        rows = np.sort(np.random.default_rng((seed, 41)).choice(rows, 4000, replace=False))
    mined = mine(surveyed.facts, rows, seed=seed, negatives=HARD, per_kind=1)
    return build_trials(mined, surveyed.facts, rows, seed=seed, most=most)


def _digest(items: Sequence[Captioned], marks: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for one, mark in zip(items, marks, strict=True):
        digest.update(f"{one.path}\0{one.caption}\0".encode())
        digest.update(mark)
    return digest.hexdigest()
