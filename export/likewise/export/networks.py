"""The two encoders of the shapes model: images and texts into one space, raw (un-normalised) features out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """Sizes of the image encoder; ``widths`` are the channels after the stem and after each residual block."""

    dim: int = 192
    widths: tuple[int, int, int, int] = (32, 64, 128, 192)
    strides: tuple[int, int, int] = (2, 2, 1)
    conjunctions: int = 384
    hidden: int = 384


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Sizes of the text encoder; ``max_length`` tokens with id 0 as padding."""

    vocabulary: int
    dim: int = 192
    width: int = 128
    layers: int = 2
    heads: int = 4
    max_length: int = 40


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.skip(self.pool(x)))


class ImageEncoder(nn.Module):
    """A small residual network; each location is widened into conjunctions (red *and* star *and* left) before pooling.

    Pooling sums what is where it is, so an object's colour stays bound to its shape only if a location says
    both at once.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        stem, *widths = config.widths
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        inputs = [stem, *widths[:-1]]
        self.blocks = nn.Sequential(
            *(_Residual(i, o, s) for i, o, s in zip(inputs, widths, config.strides, strict=True))
        )
        self.conjunctions = nn.Conv2d(widths[-1] + 2, config.conjunctions, 1)
        self.head = nn.Sequential(
            nn.Linear(2 * config.conjunctions, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, 64, 64) float32 normalised pixels to (b, dim) raw features."""
        x = self.blocks(self.stem(pixels))
        height, width = x.shape[2], x.shape[3]
        down = torch.linspace(-1, 1, height, device=x.device).to(x.dtype)
        right = torch.linspace(-1, 1, width, device=x.device).to(x.dtype)
        rows = down.view(1, 1, height, 1).expand(x.shape[0], 1, height, width)
        columns = right.view(1, 1, 1, width).expand(x.shape[0], 1, height, width)
        x = functional.relu(self.conjunctions(torch.cat([x, rows, columns], 1)))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.head(pooled)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: the exporter has decomposed scaled_dot_product_attention wrongly before
        # (pytorch#149662).
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + bias, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, width))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """Pre-norm transformer over words with mean pooling; padding (id 0) takes no part."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_length, config.width) * 0.02)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.GELU(), nn.Linear(2 * config.width, config.dim)
        )
        nn.init.normal_(self.words.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, n) int32 token ids, n up to ``max_length``, to (b, dim) raw features."""
        kept = (ids != 0).to(self.positions.dtype)
        x = self.words(ids) + self.positions[: ids.shape[1]]
        bias = ((1 - kept) * -1e4).view(ids.shape[0], 1, 1, ids.shape[1])
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm(x) * kept.unsqueeze(-1)
        pooled = x.sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
        return self.project(pooled)  # type: ignore[no-any-return]
