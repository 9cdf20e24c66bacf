"""Trains the Combiner on frozen features: InfoNCE with a learned temperature, over shared and mined negatives.

The loss is GeneCIS's (Vaze et al., 2023: cross-entropy in one direction, composed query to target); the candidates of
a query are its target, its mined hard negatives and images drawn from the whole training split, as in the last stage
of the built-in model's training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from likewise.export.combiner import Combiner, CombinerConfig
from likewise.export.training.checkpoint import Checkpoint
from likewise.export.training.facts import Facts
from likewise.export.training.mining import Triplets, excused
from likewise.export.training.plans import CombinerPlan
from likewise.export.training.progress import Progress, silent

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_MAX_SCALE: Final = 100.0


@dataclass(frozen=True, slots=True)
class Material:
    """Frozen features and what is asked of them; rows are those of ``facts``.

    Attributes:
        images: (v, n, d) raw image features; v views of each image, one is the image as it is served.
        texts: (t, d) raw features of every distinct wording.
        wordings: (m, w) int64, position in ``texts`` of each triplet's wordings.
        triplets: m triplets mined from ``training``.
        facts: Of all n images.
        training: Rows to draw shared candidates from.
    """

    images: F32
    texts: F32
    wordings: I64
    triplets: Triplets
    facts: Facts
    training: I64


class _Query(nn.Module):
    """The Combiner and the learned temperature of its loss."""

    def __init__(self, config: CombinerConfig) -> None:
        super().__init__()
        self.combiner = Combiner(config)
        self.scale = nn.Parameter(torch.tensor(math.log(15.0)))


def train_combiner(
    material: Material,
    plan: CombinerPlan,
    checkpoint: Checkpoint,
    *,
    validate: Callable[[Combiner], float],
    progress: Progress = silent,
) -> tuple[Combiner, float, int]:
    """Train a Combiner to the end or until patience runs out.

    Args:
        material: Features and triplets.
        plan: Sizes, lengths and rates.
        checkpoint: Where to go on from and to save to; a resumed run ends as an unbroken one would.
        validate: Score of a Combiner in eval mode on the validation templates, larger is better.
        progress: Told of every step.

    Returns:
        The best Combiner in eval mode, its score, and the number of steps done.
    """
    dim = material.images.shape[2]
    torch.manual_seed(plan.seed)
    model = _Query(CombinerConfig(dim, projection=2 * dim, hidden=4 * dim, dropout=plan.dropout))
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    state = checkpoint.resume({"query": model}, optimizer)
    images, texts = torch.from_numpy(material.images), torch.from_numpy(material.texts)
    units = functional.normalize(images, dim=2)
    while state.step < plan.steps and not state.patience_is_out(plan.patience):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * state.step / plan.steps))
        loss = _step(model, material, plan, state.step, (images, units, texts))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state.step += 1
        if state.step % plan.check_every == 0 or state.step == plan.steps:
            state.look(validate(model.combiner.eval()), {"query": model})
            checkpoint.save(state, {"query": model}, optimizer)
        note = f"loss {loss.item():.2f}, held-out {max(state.best_score, 0):.3f}"
        progress("training the Combiner", state.step / plan.steps, note)
    state.restore_best({"query": model})
    return model.combiner.eval(), state.best_score, state.step


def _step(
    model: _Query,
    material: Material,
    plan: CombinerPlan,
    step: int,
    features: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    images, units, texts = features
    triplets = material.triplets
    rng = np.random.default_rng((plan.seed, 9, step))
    torch.manual_seed(plan.seed * 7_000_003 + step)
    model.combiner.train()
    query = rng.integers(len(triplets), size=min(plan.queries, len(triplets)))
    shared = rng.permutation(material.training)[: plan.shared]
    hard = triplets.negatives[query]
    own = np.concatenate([triplets.target[query][:, None], np.maximum(hard, 0)], 1)
    spared = np.concatenate(
        [np.zeros((len(query), 1), np.bool_), hard < 0, excused(triplets, query, material.facts, shared)], 1
    )
    wording = material.wordings[query, rng.integers(material.wordings.shape[1], size=len(query))]
    # A reference and its candidates are seen in one view each, drawn anew: a small corpus is learnt by heart otherwise.
    seen, shown = rng.integers(len(images), size=2)
    references = images[seen, torch.from_numpy(triplets.reference[query])]
    composed = model.combiner(references, texts[torch.from_numpy(wording)])
    near = torch.einsum("qd,qcd->qc", composed, units[shown, torch.from_numpy(own)])
    far = composed @ units[shown, torch.from_numpy(shared)].T
    logits = model.scale.exp().clamp(max=_MAX_SCALE) * torch.cat([near, far], 1)
    logits = logits.masked_fill(torch.from_numpy(spared), -1e4)
    return functional.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))
