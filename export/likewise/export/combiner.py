"""The GeneCIS Combiner (Vaze et al., 2023), after CLIP4Cir's, scaled to the dimension of the space."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


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
