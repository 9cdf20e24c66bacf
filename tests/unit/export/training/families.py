"""Tiny random families in a repository, made with the package's own exporter: enough to train composers on."""

from pathlib import Path

import torch

from likewise.export.model_repository import Family, load_repository
from likewise.export.networks import ImageConfig, TextEncoder
from likewise.export.repository import write_family
from likewise.export.training.encoders import fresh
from likewise.export.training.wording import vocabulary_texts

TINY = ImageConfig(dim=16, widths=(4, 6, 8, 8), conjunctions=16, hidden=16)


def write_tiny(folder: Path, texts: list[str], *, name: str = "tiny", seed: int = 0) -> Family:
    """A random image and text encoder over the words of ``texts``, published in ``folder``/repository."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    made = fresh([*texts, *vocabulary_texts()], folder, seed=seed, image=TINY)
    # Other statistics than those of an untrained batch norm, so that folding them can be seen to be undone.
    torch.manual_seed(seed)
    for module in made.image.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            # What is the same for every image would be nearly all of an untrained encoder's output.
            module.bias.data.mul_(0.01)
    # Untrained word vectors are so small that all texts would have the same features.
    assert isinstance(made.text, TextEncoder)
    torch.nn.init.normal_(made.text.words.weight, std=2.0)
    write_family(folder / "repository", name, made.parts(name, texts), dim=TINY.dim, max_batch=8)
    return load_repository(folder / "repository").family(name)
