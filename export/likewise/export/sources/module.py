"""Any torch module: found by the name of what makes it, with a signature that says what it is."""

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from likewise.export.manifest import TokenizerSpec
from likewise.export.preprocess import Preprocessing
from likewise.export.sources.checkpoint import SourceError, load_strictly, read_state_dict
from likewise.export.sources.signature import Signature
from likewise.export.sources.towers import TOKENIZER_FILE, ImageTower, TextTower

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_module(factory: str, *, weights: Path | None = None) -> nn.Module:
    """The module that ``package.module:name`` makes, in eval mode.

    Args:
        factory: A function without arguments that returns the module, a class that needs none, or the module itself.
            The current folder is searched too, as `python -m` does.
        weights: A state dict to load into it.

    Raises:
        SourceError: It cannot be imported, called, or gives something else.
        CheckpointError: The weights do not fit.
    """
    module_name, colon, attribute = factory.partition(":")
    if not (module_name and colon and attribute):
        raise SourceError(f"a factory is named package.module:function, got {factory!r}")
    made = _call(_find(module_name, attribute, factory), factory)
    if weights is not None:
        load_strictly(made, read_state_dict(weights), str(weights))
    return made.eval().float()


def image_tower(module: nn.Module, signature: Signature, preprocessing: Preprocessing | None) -> ImageTower:
    """An image encoder of one's own.

    Raises:
        SourceError: The preprocessing is missing or of another size than the module's input.
    """
    (pixels,) = signature.inputs
    size = pixels.shape[2]
    if preprocessing is None:
        raise SourceError(
            "an image encoder needs its preprocessing, which nothing can be guessed from: --preprocess "
            f'\'{{"size": {size}, "resize": "shortest", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}\''
        )
    if preprocessing.size != size:
        raise SourceError(f"the preprocessing gives pictures of {preprocessing.size}, the signature says {size}")
    return ImageTower(module, preprocessing)


def text_tower(
    module: nn.Module,
    signature: Signature,
    tokenizer: Path | None,
    *,
    pad_id: int = 0,
    template: str = "{}",
    truncate: str = "end",
) -> TextTower:
    """A text encoder of one's own with a tokenizer.json.

    Raises:
        SourceError: There is no tokenizer, or it has more tokens than the module has vectors for.
    """
    (ids,) = signature.inputs
    if tokenizer is None or not tokenizer.is_file():
        raise SourceError(f"a text encoder needs its tokenizer: --tokenizer FILE, a tokenizer.json; got {tokenizer}")
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    rows = max((table.num_embeddings for table in tables), default=sys.maxsize)
    length = ids.shape[1]
    spec = TokenizerSpec(TOKENIZER_FILE, length, pad_id, template, truncate)
    return TextTower(module, tokenizer.read_text(encoding="utf-8"), spec, vocabulary=rows, positions=length)


def _find(module_name: str, attribute: str, factory: str) -> Any:
    try:
        with _current_folder():
            found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise SourceError(f"{factory}: {module_name} cannot be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise SourceError(f"{factory}: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


@contextmanager
def _current_folder() -> "Iterator[None]":
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def _call(found: Callable[[], Any] | nn.Module, factory: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SourceError(f"{factory} is a {type(found).__name__}, neither a module nor something that makes one")
    needed = [
        name
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise SourceError(f"{factory} needs arguments ({', '.join(needed)}); name a function that needs none")
    made = found()
    if not isinstance(made, nn.Module):
        raise SourceError(f"{factory} gives a {type(made).__name__}, not a torch.nn.Module")
    return made
