"""The loss that binds a colour to its shape: in a scene of several objects, which of them is the red one.

Contrastive losses are content with bags of words: a scene with a star and a circle, red and blue, is found without
knowing which is which (Yuksekgonul et al., 2023). Here each object must be told by its own pair from all other pairs
of its shape, and of its colour, so that the other object's word is a wrong answer.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from likewise.export.shapes.world import COLOURS, SHAPES
from likewise.export.tokenizer import Tokenizer

_NEVER = -1e4


def pair_phrases(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """Token ids of "a <colour> <shape>" for every pair, (shapes * colours, n), colours running fastest."""
    ids = tokenizer([f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]).ids
    return ids[:, : int((ids != 0).sum(1).max())]


def binding_loss(logits: Tensor, things: npt.NDArray[np.int8], known: npt.NDArray[np.bool_]) -> tuple[Tensor, float]:
    """Cross-entropy of each object's colour given its shape, and of its shape given its colour.

    Only scenes of two or more objects count. A pair that training never shows is no candidate, since counting it as
    always wrong would teach that it does not exist; nor is the pair of another object in the scene.

    Args:
        logits: (n, shapes, colours), how well scene i fits "a <colour> <shape>".
        things: (n, 3, 4) codes of each scene's objects, -1 where there is none.
        known: (shapes, colours), pairs that training shows.

    Returns:
        The sum of both losses, 0 without such scenes, and the share of colours that were right.
    """
    present = things[:, :, 0] >= 0
    scene, place = np.nonzero(present & (present.sum(1) > 1)[:, None])
    if not len(scene):
        return logits.sum() * 0.0, 0.0
    shape, colour = things[scene, place, 0].astype(np.int64), things[scene, place, 1].astype(np.int64)
    shown = np.zeros((len(things), *known.shape), np.bool_)
    shown[scene, shape, colour] = True
    barred = shown | ~known
    rows = np.arange(len(scene))
    no_colour, no_shape = barred[scene, shape], barred[scene, :, colour]
    no_colour[rows, colour] = no_shape[rows, shape] = False
    of, at, by = (torch.from_numpy(values) for values in (scene, shape, colour))
    colours = logits[of, at].masked_fill(torch.from_numpy(no_colour), _NEVER)
    shapes = logits[of, :, by].masked_fill(torch.from_numpy(no_shape), _NEVER)
    loss = functional.cross_entropy(colours, by) + functional.cross_entropy(shapes, at)
    return loss, (colours.argmax(1) == by).float().mean().item()
