"""The GeneCIS Combiner (Vaze et al., 2023), after CLIP4Cir's, scaled to the dimension of the space."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_PUBLISHED_NAMES: Final = {
    "text_projection_layer.": "text.0.",
    "image_projection_layer.": "image.0.",
    "combiner_layer.": "combine.0.",
    "output_layer.": "output.",
    "dynamic_scalar.": "gate.",
}
"""Layers by the names of GeneCIS's and CLIP4Cir's released weights, and by ours."""


@dataclass(frozen=True, slots=True)
class CombinerConfig:
    """Sizes; the paper's are dim 512 or 640, projection 4 to 5 times dim, hidden twice the projection, dropout 0.5."""

    dim: int = 192
    projection: int = 320
    hidden: int = 640
    dropout: float = 0.1


class Combiner(nn.Module):
    """Reference and condition features to one unit query in the image space.

    Concatenates text first, takes raw (un-normalised) features, and adds a learned correction to a gated sum
    of the two.
    """

    def __init__(self, config: CombinerConfig) -> None:
        super().__init__()
        drop = config.dropout
        self.text = nn.Sequential(nn.Linear(config.dim, config.projection), nn.ReLU(), nn.Dropout(drop))
        self.image = nn.Sequential(nn.Linear(config.dim, config.projection), nn.ReLU(), nn.Dropout(drop))
        joint = 2 * config.projection
        self.combine = nn.Sequential(nn.Linear(joint, config.hidden), nn.ReLU(), nn.Dropout(drop))
        self.output = nn.Linear(config.hidden, config.dim)
        self.gate = nn.Sequential(
            nn.Linear(joint, config.hidden),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(config.hidden, 1),
            nn.Sigmoid(),
        )

    def forward(self, reference: Tensor, condition: Tensor) -> Tensor:
        """(b, dim) raw image features and (b, dim) raw text features to (b, dim) unit vectors."""
        joint = torch.cat([self.text(condition), self.image(reference)], 1)
        share = self.gate(joint)
        query = self.output(self.combine(joint)) + share * condition + (1 - share) * reference
        return functional.normalize(query, dim=1)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Combiner's weights by our names; those that have them already, or are none of its, stay as they are."""
    found = {}
    for name, value in state.items():
        published = next((prefix for prefix in _PUBLISHED_NAMES if name.startswith(prefix)), "")
        found[_PUBLISHED_NAMES.get(published, "") + name.removeprefix(published)] = value
    return found


def config_of(state: Mapping[str, Tensor]) -> CombinerConfig:
    """The sizes of a Combiner from its weights, by our names.

    Raises:
        KeyError: A layer that tells a size is missing.
    """
    projection, dim = state["text.0.weight"].shape
    return CombinerConfig(dim=int(dim), projection=int(projection), hidden=len(state["combine.0.bias"]))
