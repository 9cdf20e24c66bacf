"""Trains two encoders on captioned images: captions against images, and short phrases told true or false.

The contrastive loss is CLIP's (Radford et al., 2021), but an image that a caption is true of is no negative of it. A
few hundred captions teach too little that way, so the facts that were read in them are used one by one as well: "a
teal arrow" is true of this image and false of that one, and a linear head names them (as in the built-in model's
training, docs/model.md).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from likewise.export.shapes.train import bfloat16_pays
from likewise.export.training.augment import augment
from likewise.export.training.checkpoint import Checkpoint
from likewise.export.training.encoders import TrainableFamily
from likewise.export.training.facts import NO_SLOT, Fact, Facts
from likewise.export.training.mining import Triplets
from likewise.export.training.plans import EncoderPlan
from likewise.export.training.progress import Progress, silent

Bool = npt.NDArray[np.bool_]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_PHRASES: Final = 160
_NEIGHBOURS: Final = 5  # images of one triplet that share a batch
_MAX_SCALE: Final = 100.0
_WEIGHT_DECAY: Final = 0.02
_NAMED: Final = 512  # facts that the linear head names


class _Heads(nn.Module):
    """Scales of the losses and the naming head: needed to train, not exported."""

    def __init__(self, dim: int, named: int) -> None:
        super().__init__()
        self.caption_scale = nn.Parameter(torch.tensor(math.log(15.0)))
        self.phrase_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.phrase_bias = nn.Parameter(torch.tensor(-4.0))
        self.names = nn.Linear(dim, named)


@dataclass(frozen=True, slots=True)
class Corpus:
    """What encoders are trained on; rows are those of ``facts``.

    Attributes:
        pixels: (n, 3, s, s) uint8, resized and cropped but not normalised; may be memory-mapped.
        captions: n texts.
        facts: Read in them.
        triplets: Mined from the training rows.
        training: Rows to learn from.
        validation: Rows to stop by.
    """

    pixels: U8
    captions: list[str]
    facts: Facts
    triplets: Triplets
    training: I64
    validation: I64


class EncoderTrainer:
    """Trains a family in place, step by step; each step depends on the seed and its number alone.

    Args:
        family: Trained in place, and set to the best state seen at the end.
        corpus: The material.
        plan: Lengths and rates.
        checkpoint: Where to go on from and to save to.
    """

    def __init__(self, family: TrainableFamily, corpus: Corpus, plan: EncoderPlan, checkpoint: Checkpoint) -> None:
        self._family, self._corpus, self._plan, self._checkpoint = family, corpus, plan, checkpoint
        facts = corpus.facts
        spec = family.preprocessing
        self._mean = torch.tensor(spec.mean).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(spec.std).view(1, 3, 1, 1) * 255
        self._captions = family.tokenise(corpus.captions)
        self._phrases = _PhraseBook(facts, corpus.training)
        self._phrase_ids = family.tokenise(self._phrases.texts)
        self._low = bfloat16_pays()
        with torch.no_grad():
            dim = family.text(torch.from_numpy(self._captions[:1])).shape[1]
        torch.manual_seed(plan.seed)
        self._heads = _Heads(dim, min(_NAMED, len(self._phrases.texts)))
        parameters = [*family.image.parameters(), *family.text.parameters(), *self._heads.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=_WEIGHT_DECAY)
        self._parameters = parameters

    def run(self, *, progress: Progress = silent) -> float:
        """Train to the end or until patience runs out; returns the best validation score."""
        plan, family = self._plan, self._family
        modules = {"image": family.image, "text": family.text, "heads": self._heads}
        state = self._checkpoint.resume(modules, self._optimizer)
        family.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        while state.step < plan.steps and not state.patience_is_out(plan.patience):
            loss = self._advance(state.step)
            state.step += 1
            if state.step % plan.check_every == 0 or state.step == plan.steps:
                state.look(self._validate(), modules)
                self._checkpoint.save(state, modules, self._optimizer)
            progress(
                "training the encoders", state.step / plan.steps, f"loss {loss:.2f}, held-out {state.best_score:.3f}"
            )
        state.restore_best(modules)
        family.image.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        family.image.eval()
        family.text.eval()
        return state.best_score

    def _advance(self, step: int) -> float:
        plan, family = self._plan, self._family
        rng = np.random.default_rng((plan.seed, 3, step))
        torch.manual_seed(plan.seed * 1_000_003 + step)
        family.image.train()
        family.text.train()
        if plan.freeze_norms:
            for module in family.image.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        loss = self._loss(rng, self._draw(rng), step)
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        return float(loss.item())

    def _draw(self, rng: np.random.Generator) -> I64:
        """Half of a batch in families of near-alike images, half at random."""
        corpus, size = self._corpus, min(self._plan.batch, len(self._corpus.training))
        picked: list[I64] = []
        if len(corpus.triplets):
            for query in rng.integers(len(corpus.triplets), size=size // (2 * _NEIGHBOURS)):
                wrong = corpus.triplets.negatives[query]
                own = [corpus.triplets.reference[query], corpus.triplets.target[query]]
                picked.append(np.concatenate([own, wrong[wrong >= 0][: _NEIGHBOURS - 2]]))
        rows = np.unique(np.concatenate(picked)) if picked else np.empty(0, np.int64)
        rest = rng.permutation(corpus.training)
        rest = rest[~np.isin(rest, rows)][: size - len(rows)]
        return np.sort(np.concatenate([rows, rest]))

    def _loss(self, rng: np.random.Generator, rows: I64, step: int) -> Tensor:
        plan, heads = self._plan, self._heads
        image = self._images(rows, rng)
        caption, unit = self._texts(self._captions[rows]), functional.normalize(image, dim=1)
        true = torch.from_numpy(_captions_true(self._corpus.facts, rows))
        loss = self._contrast(functional.normalize(caption, dim=1) @ unit.T, true)
        chosen, truth, known = self._phrases.draw(rng, rows)
        if not len(chosen):
            return loss
        phrase = functional.normalize(self._texts(self._phrase_ids[chosen]), dim=1)
        logits = heads.phrase_scale.exp() * phrase @ unit.T + heads.phrase_bias
        weight, said = torch.from_numpy(known).float(), torch.from_numpy(truth).float()
        loss = loss + plan.phrase_weight * functional.binary_cross_entropy_with_logits(logits, said, weight)
        share = max(0.0, 1 - step / (0.6 * plan.steps))
        if share > 0:
            count = heads.names.out_features
            all_true, all_known = self._phrases.truth(np.arange(count), rows)
            weight, said = torch.from_numpy(all_known.T).float(), torch.from_numpy(all_true.T).float()
            named = functional.binary_cross_entropy_with_logits(heads.names(image), said, weight)
            loss = loss + share * plan.name_weight * named
        return loss

    def _contrast(self, cosines: Tensor, true: Tensor) -> Tensor:
        logits = self._heads.caption_scale.exp().clamp(max=_MAX_SCALE) * cosines
        own = torch.arange(len(logits))
        spared = true & ~torch.eye(len(logits), dtype=torch.bool)
        rows = functional.cross_entropy(logits.masked_fill(spared, -1e4), own)
        columns = functional.cross_entropy(logits.T.masked_fill(spared.T, -1e4), own)
        return 0.5 * (rows + columns)

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean of two shares on the validation images: captions that find their image, phrases told right."""
        corpus, heads = self._corpus, self._heads
        self._family.image.eval()
        self._family.text.eval()
        rows, batch = corpus.validation, 4 * self._plan.batch
        parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        unit = functional.normalize(torch.cat([self._images(part) for part in parts]), dim=1)
        texts = functional.normalize(torch.cat([self._texts(self._captions[part]) for part in parts]), dim=1)
        true = torch.from_numpy(_captions_true(corpus.facts, rows))
        true |= torch.eye(len(rows), dtype=torch.bool)
        cosines = texts @ unit.T
        best_wrong = cosines.masked_fill(true, -2).amax(1)
        found = (cosines.diagonal() > best_wrong).float().mean()
        chosen, truth, known = self._phrases.draw(np.random.default_rng(0), rows)
        if not len(chosen):
            return float(found)
        phrase = functional.normalize(self._texts(self._phrase_ids[chosen]), dim=1)
        said = (heads.phrase_scale.exp() * phrase @ unit.T + heads.phrase_bias > 0).numpy()
        right, positive = known & (said == truth), known & truth
        balanced = 0.5 * (right[positive].mean() + right[known & ~truth].mean()) if positive.any() else 0.0
        return 0.5 * (float(found) + float(balanced))

    def _images(self, rows: I64, rng: np.random.Generator | None = None) -> Tensor:
        values = torch.from_numpy(np.asarray(self._corpus.pixels[rows])).float()
        values = (values - self._mean) / self._std
        if rng is not None:
            values = augment(values, rng)
        values = values.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._low):
            features: Tensor = self._family.image(values)
        return features.float()

    def _texts(self, ids: I32) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._low):
            features: Tensor = self._family.text(torch.from_numpy(ids))
        return features.float()


class _PhraseBook:
    """Facts as short texts, and which of them each image's caption states, denies or leaves open."""

    def __init__(self, facts: Facts, training: I64) -> None:
        stated = facts.rows[training]
        uses = np.bincount(stated[stated >= 0], minlength=len(facts.vocabulary))
        kept = [i for i in np.argsort(-uses, kind="stable").tolist() if uses[i] and facts.vocabulary[i].kind in _SPOKEN]
        self._facts = facts
        self._numbers = np.asarray(kept, np.int64)
        self.texts = [_spoken(facts.vocabulary[i]) for i in kept]
        numbers = facts.numbers()
        by_noun_slot: dict[tuple[str, int], list[int]] = {}
        for fact, number in numbers.items():
            if fact.kind == "has" and fact.word:
                by_noun_slot.setdefault((fact.noun, fact.slot), []).append(number)
        self._rivals: list[tuple[int, list[int]]] = []
        for i in kept:
            fact = facts.vocabulary[i]
            if fact.kind == "has" and fact.word and fact.slot != NO_SLOT:
                bare = numbers.get(Fact("has", fact.noun), -1)
                self._rivals.append((bare, by_noun_slot[fact.noun, fact.slot]))
            else:
                self._rivals.append((-1, []))

    def draw(self, rng: np.random.Generator, rows: I64) -> tuple[I64, Bool, Bool]:
        """Some phrases that are true of one of the images at least; their truth and whether it is known."""
        stated = self._stated(rows)
        present = np.flatnonzero(stated[:, self._numbers].any(0))
        chosen = np.sort(rng.permutation(present)[:_PHRASES])
        return (chosen, *self.truth(chosen, rows, stated))

    def truth(self, chosen: I64, rows: I64, stated: Bool | None = None) -> tuple[Bool, Bool]:
        """(p, b) whether a caption states each phrase, and (p, b) whether it speaks of the matter at all."""
        facts = self._facts
        stated = self._stated(rows) if stated is None else stated
        truth = stated[:, self._numbers[chosen]].T.copy()
        known = np.ones_like(truth)
        for i, phrase in enumerate(chosen.tolist()):
            fact = facts.vocabulary[self._numbers[phrase]]
            if fact.kind == "value" and fact.slot != NO_SLOT:
                known[i] = facts.values[rows, fact.slot] >= 0
            elif self._rivals[phrase][1]:
                bare, rivals = self._rivals[phrase]
                known[i] = stated[:, rivals].any(1) | ~(stated[:, bare] if bare >= 0 else np.False_)
        return truth, known

    def _stated(self, rows: I64) -> Bool:
        return _stated(self._facts, rows)


def common_phrases(facts: Facts, rows: I64, count: int) -> list[str]:
    """The most frequent noun phrases of some captions ("a teal arrow"), most frequent first."""
    stated = facts.rows[rows]
    uses = np.bincount(stated[stated >= 0], minlength=len(facts.vocabulary))
    order = np.argsort(-uses, kind="stable").tolist()
    return [_spoken(facts.vocabulary[i]) for i in order if uses[i] and facts.vocabulary[i].kind == "has"][:count]


_SPOKEN: Final = ("value", "has")


def _spoken(fact: Fact) -> str:
    words = f"{fact.word} {fact.noun}".strip()
    return words if fact.kind == "value" else ("an " if words[:1] in "aeiou" else "a ") + words


def _stated(facts: Facts, rows: I64) -> Bool:
    stated = np.zeros((len(rows), len(facts.vocabulary) + 1), np.bool_)
    np.put_along_axis(stated, facts.rows[rows].astype(np.int64), True, 1)  # padding lands in the last column
    return stated[:, :-1]


def _captions_true(facts: Facts, rows: I64) -> Bool:
    """(b, b) whether all that caption i says is said of image j too."""
    stated = _stated(facts, rows).astype(np.float32)
    return np.asarray(stated @ stated.T >= stated.sum(1, keepdims=True), np.bool_)


def _schedule(step: int, plan: EncoderPlan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))))
