"""Modules of a user's own, found by name as `likewise export module` finds them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 16
DIM = 12
LENGTH = 6
WORDS = 9


class Pixels(nn.Module):
    """An image encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.head = nn.Linear(16, DIM)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(functional.gelu(self.patches(pixels)).mean((2, 3)))  # type: ignore[no-any-return]


class Words(nn.Module):
    """A text encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(WORDS, 16)
        self.head = nn.Linear(16, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(1, ids.shape[1] + 1, dtype=torch.float32).view(1, -1, 1)
        return self.head((self.table(ids) / places).sum(1))  # type: ignore[no-any-return]


class Sum(nn.Module):
    """A composer; its weight comes from a state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, reference: Tensor, condition: Tensor) -> Tensor:
        return functional.normalize(reference + self.weight * condition, dim=1)


class Unnormalised(Sum):
    """A composer that forgets to end in unit vectors."""

    def forward(self, reference: Tensor, condition: Tensor) -> Tensor:
        return reference + self.weight * condition


class FixedBatch(Pixels):
    """An image encoder with the batch in its code."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.reshape(2, 3, SIZE, SIZE))


def sized(size: int) -> nn.Module:
    """Needs an argument, which the command line cannot give."""
    return nn.Linear(size, size)


def no_module() -> str:
    """Makes something else."""
    return "module"
