"""The last stage: the Combiner alone, on frozen features, where steps are cheap and galleries large."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from likewise.export.shapes.batches import Batches, trim
from likewise.export.shapes.conditions import KINDS
from likewise.export.shapes.train import Plan, ShapesModel, masked_cross_entropy, pixels
from likewise.export.shapes.triplets import Triplets, satisfied
from likewise.export.shapes.world import THING_ATTRIBUTES

_QUERIES: Final = 384
_SHARED: Final = 384  # random scenes of the pool that are candidates of every query of a step
_ENCODE: Final = 256
_TEXTURE: Final = THING_ATTRIBUTES.index("texture")
_TEXTURE_WEIGHT: Final = 3.0
"""How often "the same texture" is asked against any other condition: it is learnt last. With equal shares, 2,500 steps
left it at chance on validation pairs (14 % of 10 candidates) while every other attribute stood above 99."""


@torch.no_grad()
def encode_pool(model: ShapesModel, batches: Batches) -> Tensor:
    """Raw features (n, d) of every scene of the pool, in eval mode and fp32."""
    model.eval()
    images = batches.pool.images
    parts = [model.image(pixels(images[i : i + _ENCODE])) for i in range(0, len(images), _ENCODE)]
    return torch.cat(parts)


@torch.no_grad()
def encode_conditions(model: ShapesModel, batches: Batches) -> Tensor:
    """Raw features (c, d) of every distinct wording of the mined conditions."""
    model.eval()
    ids = batches.condition_ids
    parts = [model.text(torch.from_numpy(trim(ids[i : i + 1024]))) for i in range(0, len(ids), 1024)]
    return torch.cat(parts)


def shares(triplets: Triplets) -> npt.NDArray[np.float64]:
    """How likely each triplet is to be drawn, (m,), adding up to 1."""
    texture = (triplets.kind == KINDS.index("focus_attribute")) & (triplets.attribute == _TEXTURE)
    weights = np.where(texture, _TEXTURE_WEIGHT, 1.0)
    return np.asarray(weights / weights.sum(), np.float64)


def train_combiner(
    model: ShapesModel,
    batches: Batches,
    plan: Plan,
    *,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Train ``model.combiner`` for ``plan.combiner_steps`` steps; the encoders do not change.

    A query's candidates are its target, all its mined hard negatives and scenes drawn from the whole pool.
    """
    images, conditions = encode_pool(model, batches), encode_conditions(model, batches)
    units = functional.normalize(images, dim=1)
    triplets = batches.triplets
    drawn_below = np.cumsum(shares(triplets))
    optimizer = torch.optim.AdamW(
        [*model.combiner.parameters(), model.query_scale], lr=plan.polish_rate, weight_decay=plan.weight_decay
    )
    model.combiner.train()
    for step in range(plan.combiner_steps):
        rng = np.random.default_rng((plan.seed, 9, step))
        torch.manual_seed(plan.seed * 7_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = plan.polish_rate * 0.5 * (1 + math.cos(math.pi * step / plan.combiner_steps))
        query = np.minimum(np.searchsorted(drawn_below, rng.random(_QUERIES)), len(drawn_below) - 1)
        shared = rng.integers(len(units), size=_SHARED)
        hard = triplets.negatives[query]
        own = np.concatenate([triplets.target[query][:, None], np.maximum(hard, 0)], 1)
        spared = np.concatenate(
            [
                np.zeros((_QUERIES, 1), np.bool_),
                hard < 0,
                satisfied(triplets, query, batches.pool.graphs, shared),
            ],
            1,
        )
        wording = rng.integers(batches.condition_index.shape[1], size=_QUERIES)
        condition = conditions[torch.from_numpy(batches.condition_index[query, wording])]
        composed = model.combiner(images[torch.from_numpy(triplets.reference[query])], condition)
        near = torch.einsum("qd,qcd->qc", composed, units[torch.from_numpy(own)])
        far = composed @ units[torch.from_numpy(shared)].T
        logits = model.query_scale.exp().clamp(max=100.0) * torch.cat([near, far], 1)
        targets = torch.zeros(_QUERIES, dtype=torch.int64)
        loss = masked_cross_entropy(logits, targets, torch.from_numpy(spared))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.combiner.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            hit = (logits.detach().masked_fill(torch.from_numpy(spared), -1e4).argmax(1) == 0).float().mean()
            on_step(step + 1, {"query": loss.item(), "query_accuracy": hit.item()})
    model.combiner.eval()
