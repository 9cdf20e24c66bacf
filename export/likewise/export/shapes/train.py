"""Trains the shapes model: image encoder on words, both encoders on captions, then all on triplets.

Steps are counted, seeds are fixed and every checkpoint can be continued, also towards a larger number of
steps.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from likewise.export.combiner import Combiner, CombinerConfig
from likewise.export.networks import ImageConfig, ImageEncoder, TextConfig, TextEncoder
from likewise.export.shapes.batches import Batch, Batches
from likewise.export.shapes.binding import binding_loss
from likewise.export.shapes.world import BACKGROUNDS, THING_ATTRIBUTES, VALUES

_LOG = logging.getLogger(__name__)
_CHECKPOINT_EVERY: Final = 250
WORDS: Final = len(BACKGROUNDS) + sum(
    len(VALUES[a]) * (1 + sum(len(VALUES[b]) for b in THING_ATTRIBUTES[i + 1 :]))
    for i, a in enumerate(THING_ATTRIBUTES)
)
MAIN_WORDS: Final = sum(len(values) for values in VALUES.values())
_CLIP: Final = 1.0
_MAX_SCALE: Final = 100.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and lengths of a run; ``steps`` counts both joint stages.

    Attributes:
        steps: Steps of encoder training; the learning rate falls to zero over them.
        word_weight: Of the loss that names the caption's words; it falls to zero over ``word_share`` of the
            steps.
        naming_steps: The first of them train the image encoder alone, on scenes of one object, to name the
            words of the caption; without them contrastive training stays for long at colours and backgrounds,
            which are easier than shapes.
        contrastive_steps: Until this step only captions are used; then triplets too.
        combiner_steps: Steps of the Combiner alone afterwards, on frozen features.
        references: References per step; each brings up to ``queries`` queries with ``negatives`` hard
            negatives each.
        encoder_rate: Peak learning rate of the encoders.
        combiner_rate: Peak learning rate of the Combiner.
        seed: Of weights, batches and augmentation.
    """

    steps: int = 6000
    naming_steps: int = 300
    contrastive_steps: int = 800
    combiner_steps: int = 5500
    references: int = 22
    queries: int = 4
    negatives: int = 2
    warmup: int = 150
    encoder_rate: float = 1e-3
    combiner_rate: float = 1e-3
    polish_rate: float = 1e-3
    weight_decay: float = 0.02
    contrastive_weight: float = 0.5
    phrase_weight: float = 5.0
    word_weight: float = 20.0
    main_weight: float = 0.5
    word_share: float = 0.6
    binding_weight: float = 1.0
    seed: int = 1


class ShapesModel(nn.Module):
    """The three networks and the learned scales of their losses."""

    def __init__(self, image: ImageConfig, text: TextConfig, combiner: CombinerConfig, *, words: int = WORDS) -> None:
        super().__init__()
        self.image = ImageEncoder(image)
        self.text = TextEncoder(text)
        self.combiner = Combiner(combiner)
        self.caption_scale = nn.Parameter(torch.tensor(math.log(15.0)))
        # Only for training: names the words of the caption from the image's features.
        self.word_head = nn.Linear(image.dim, words)
        self.main_head = nn.Linear(image.dim, MAIN_WORDS)
        self.phrase_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.phrase_bias = nn.Parameter(torch.tensor(-4.0))
        self.query_scale = nn.Parameter(torch.tensor(math.log(15.0)))


def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere autocast emulates it and is slower than float32."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


@contextmanager
def _precision(*, low: bool) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        yield


def pixels(images: npt.NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float32 in [-1, 1], as ``preprocess.to_tensor`` gives them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    shape = (len(images), 1, 1, 1)
    gain = 1 + 0.08 * (2 * torch.rand(shape, generator=generator) - 1)
    offset = 0.08 * (2 * torch.rand(shape, generator=generator) - 1)
    return images * gain + offset


def masked_cross_entropy(logits: Tensor, targets: Tensor, excused: Tensor) -> Tensor:
    """Cross-entropy of (q, c) logits and (q,) targets over each row's candidates without the (q, c) excused ones."""
    return functional.cross_entropy(logits.masked_fill(excused, -1e4), targets)


def main_loss(logits: Tensor, values: npt.NDArray[np.int64]) -> tuple[Tensor, float]:
    """Cross-entropy of the main object's attributes and of the background, each among its own values.

    Args:
        logits: (n, MAIN_WORDS).
        values: (n, 5) codes, -2 where no object stands out.

    Returns:
        The loss, and the share of shapes that were right.
    """
    rows = np.flatnonzero(values[:, 0] >= 0)
    truth = torch.from_numpy(values[rows])
    picked = logits[torch.from_numpy(rows)]
    loss, start, accuracy = logits.new_zeros(()), 0, 0.0
    for column, name in enumerate((*THING_ATTRIBUTES, "background")):
        part = picked[:, start : start + len(VALUES[name])]
        loss = loss + functional.cross_entropy(part, truth[:, column])
        if name == "shape":
            accuracy = (part.argmax(1) == truth[:, column]).float().mean().item()
        start += len(VALUES[name])
    return loss, accuracy


def _rate(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - plan.warmup) / (plan.steps - plan.warmup))))


class Trainer:
    """Runs the joint stages step by step and keeps its own checkpoint.

    Args:
        model: Trained in place.
        batches: Where material comes from.
        plan: Sizes and lengths.
        folder: Where ``checkpoint.pt`` is kept; an existing one of the same architecture is continued.
    """

    def __init__(self, model: ShapesModel, batches: Batches, plan: Plan, folder: Path) -> None:
        self.model = model
        self._batches = batches
        self._plan = plan
        self._path = folder / "checkpoint.pt"
        self._low = bfloat16_pays()
        combiner = set(model.combiner.parameters())
        encoders = [p for p in model.parameters() if p not in combiner]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": encoders, "peak": plan.encoder_rate},
                {"params": list(combiner_in_order(model)), "peak": plan.combiner_rate},
            ],
            lr=plan.encoder_rate,
            betas=(0.9, 0.98),
            weight_decay=plan.weight_decay,
        )
        # One batch ahead: assembling it keeps one core busy for a tenth of a step.
        self._ahead = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None
        self.step = 0
        self.seconds = 0.0
        if self._path.exists():
            self._restore()

    def run(self, *, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Train up to the plan's last step, saving on the way."""
        self.model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        while self.step < self._plan.steps:
            began = time.monotonic()
            losses = self._advance()
            self.step += 1
            self.seconds += time.monotonic() - began
            if on_step is not None:
                on_step(self.step, losses)
            if self.step % _CHECKPOINT_EVERY == 0 or self.step == self._plan.steps:
                self.save()

    def _batch(self) -> Batch:
        plan, step = self._plan, self.step
        arguments = {"references": plan.references, "queries": plan.queries, "negatives": plan.negatives}
        held = self._next
        if held is None or held[0] != step:
            held = (step, self._ahead.submit(self._batches, step, **arguments))
        self._next = (step + 1, self._ahead.submit(self._batches, step + 1, **arguments))
        return held[1].result()

    def _name(self) -> tuple[Tensor, dict[str, float]]:
        plan, pool = self._plan, self._batches.pool
        rows = self._batches.single(self.step, plan.references * 10)
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step)
        images = _augment(pixels(pool.images[rows]), generator)
        with _precision(low=self._low):
            image = self.model.image(images.contiguous(memory_format=torch.channels_last)).float()
        loss, accuracy = main_loss(self.model.main_head(image), self._batches.main_values[rows])
        return loss, {"main": loss.item(), "main_accuracy": accuracy}

    def _advance(self) -> dict[str, float]:
        loss, losses = self._name() if self.step < self._plan.naming_steps else self._join()
        factor = _rate(self.step, self._plan)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self._optimizer.step()
        return losses

    def _join(self) -> tuple[Tensor, dict[str, float]]:
        plan, model = self._plan, self.model
        batch = self._batch()
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step)
        torch.manual_seed(plan.seed * 1_000_003 + self.step)
        images = _augment(pixels(self._batches.pool.images[batch.rows]), generator)
        with _precision(low=self._low):
            image = model.image(images.contiguous(memory_format=torch.channels_last)).float()
            text = model.text(torch.from_numpy(batch.captions)).float()
            phrase = model.text(torch.from_numpy(batch.phrases)).float()
            pair = model.text(torch.from_numpy(self._batches.pair_ids)).float()
        unit_image, unit_text = functional.normalize(image, dim=1), functional.normalize(text, dim=1)

        scale = model.caption_scale.exp().clamp(max=_MAX_SCALE)
        logits = scale * unit_text @ unit_image.T
        own = torch.arange(len(image))
        excused = torch.from_numpy(batch.true_captions)
        excused = excused & ~torch.eye(len(image), dtype=torch.bool)
        caption_loss = 0.5 * (
            masked_cross_entropy(logits, own, excused) + masked_cross_entropy(logits.T, own, excused.T)
        )
        caption_accuracy = (logits.masked_fill(excused, -1e4).argmax(1) == own).float().mean()
        losses = {"caption": caption_loss.item(), "caption_accuracy": caption_accuracy.item()}
        phrase_logits = (
            model.phrase_scale.exp() * functional.normalize(phrase, dim=1) @ unit_image.T + model.phrase_bias
        )
        true_phrases = torch.from_numpy(batch.true_phrases).float()
        phrase_loss = functional.binary_cross_entropy_with_logits(phrase_logits, true_phrases)
        share = max(0.0, 1 - self.step / (plan.word_share * plan.steps))
        if share > 0:
            words = torch.from_numpy(self._batches.known_words)
            said = torch.from_numpy(batch.words)[:, words].float()
            named = model.word_head(image)[:, words]
            word_loss = functional.binary_cross_entropy_with_logits(named, said)
            losses["word"] = word_loss.item()
            main, accuracy = main_loss(model.main_head(image), self._batches.main_values[batch.rows])
            losses |= {"main": main.item(), "main_accuracy": accuracy}
            caption_loss = caption_loss + share * (plan.word_weight * word_loss + plan.main_weight * main)
        losses["phrase"] = phrase_loss.item()
        caption_loss = caption_loss + plan.phrase_weight * phrase_loss
        pair_logits = model.phrase_scale.exp() * unit_image @ functional.normalize(pair, dim=1).T
        known = self._batches.known_pairs
        bound, bound_accuracy = binding_loss(pair_logits.view(-1, *known.shape), batch.things, known)
        losses |= {"binding": bound.item(), "binding_accuracy": bound_accuracy}
        loss = caption_loss + plan.binding_weight * bound
        if self.step >= plan.contrastive_steps:
            with _precision(low=self._low):
                condition = model.text(torch.from_numpy(batch.conditions)).float()
            query = model.combiner(image[torch.from_numpy(batch.references)], condition)
            query_logits = model.query_scale.exp().clamp(max=_MAX_SCALE) * query @ unit_image.T
            targets, spared = torch.from_numpy(batch.targets), torch.from_numpy(batch.excused)
            query_loss = masked_cross_entropy(query_logits, targets, spared)
            hit = (query_logits.masked_fill(spared, -1e4).argmax(1) == targets).float().mean()
            losses |= {"query": query_loss.item(), "query_accuracy": hit.item()}
            loss = query_loss + plan.contrastive_weight * caption_loss + plan.binding_weight * bound
        return loss, losses

    def save(self) -> None:
        """Write the checkpoint; the old one stays whole until the new one is."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "plan": asdict(self._plan),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        part = self._path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._path)

    def _restore(self) -> None:
        state = torch.load(self._path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(
            self._optimizer.param_groups, (self._plan.encoder_rate, self._plan.combiner_rate), strict=True
        ):
            group["peak"] = peak
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        _LOG.info("continuing at step %d after %.0f s of training", self.step, self.seconds)


def combiner_in_order(model: ShapesModel) -> Iterator[nn.Parameter]:
    """The Combiner's parameters in a fixed order, which the optimizer's saved state relies on."""
    return model.combiner.parameters()
