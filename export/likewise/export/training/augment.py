"""Small random changes of training pictures that leave what their captions say true."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Crops of 85 to 100 % of the side, drawn to full size, with small changes of gain and offset.

    No mirroring: captions speak of left and right.

    Args:
        images: (b, 3, s, s) normalised pixels.
        rng: Of every draw.
    """
    count = len(images)
    scale = rng.uniform(0.85, 1.0, count)
    shift = rng.uniform(-1, 1, (count, 2)) * (1 - scale)[:, None]
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = functional.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.94, 1.06, (count, 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 1, 1, 1)).astype(np.float32))
    return images * gain + offset
