"""What every source gives: towers as torch modules with their inputs' preparation, checked against the original's."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer as JsonTokenizer
from torch import Tensor, nn

from likewise.export.manifest import PreprocessingSpec, TensorSpec, TokenizerSpec
from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.export.repository import Part
from likewise.export.sources import golden
from likewise.export.sources.checkpoint import SourceError
from likewise.export.tokenizer import open_tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"

_PIXEL_TOLERANCE: Final = 1.01 / 255
"""One step of an 8-bit channel: what two correct implementations of one filter may round apart."""

_TRANSFORM_CHECKS: Final = 12

Pictures = Callable[[int], Sequence[Image.Image]]


@dataclass(frozen=True, slots=True)
class ImageTower:
    """Pixels to raw features.

    Attributes:
        module: (b, 3, s, s) float32 to (b, d), in eval mode.
        preprocessing: Before it; s is its size.
        reference: The original's own transform, an RGB picture to (3, s, s); None if it has none that can be run.
        notes: For the manifest.
    """

    module: nn.Module
    preprocessing: Preprocessing
    reference: Callable[[Image.Image], npt.NDArray[np.float32]] | None = None
    notes: str = "Raw image features; the score is the inner product of unit vectors."


@dataclass(frozen=True, slots=True)
class TextTower:
    """Token ids to raw features.

    Attributes:
        module: (b, n) int32 to (b, d), in eval mode.
        tokenizer_json: Content of the tokenizer.json.
        tokenizer: Its settings; n is its max_length.
        vocabulary: Rows of the module's table of tokens.
        positions: Tokens that the module can read of a text.
        reference: The original's own tokenizer, texts to (b, n) ids; None if there is none.
        notes: For the manifest.
    """

    module: nn.Module
    tokenizer_json: str
    tokenizer: TokenizerSpec
    vocabulary: int
    positions: int
    reference: Callable[[Sequence[str]], npt.NDArray[Any]] | None = None
    notes: str = "Raw text features in the image encoder's space: the unit vector searches images directly."


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be exported.

    Attributes:
        name: What it is called where it is from; a family's name is made of it.
        image: Its image tower.
        text: Its text tower, if it has one.
        libraries: Distributions that decide what it computes.
        facts: For people: weights, activation, and what else was found out on the way.
    """

    name: str
    image: ImageTower
    text: TextTower | None = None
    libraries: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def image_part(
    family: str, tower: ImageTower, *, pictures: Pictures = golden.pictures, precision: str = "fp32"
) -> Part:
    """The tower as a model of a family, to be compared on pictures.

    Args:
        family: The model's name begins with it.
        tower: Its preprocessing is held against the original's.
        pictures: RGB pictures for a number of them.
        precision: Of the published graph.

    Raises:
        SourceError: The preprocessing gives other pixels than the original's.
    """
    spec = tower.preprocessing
    check_preprocessing(tower, pictures)

    @lru_cache(maxsize=1)
    def prepared(count: int) -> Tensor:
        shown = pictures(count)
        return torch.from_numpy(np.stack([to_tensor(shown[i % len(shown)], spec) for i in range(count)]))

    def sample(batch: int) -> tuple[Tensor, ...]:
        return (prepared(batch),)

    return Part(
        f"{family}-image",
        "image_encoder",
        tower.module,
        (TensorSpec("pixels", "float32", (-1, 3, spec.size, spec.size)),),
        TensorSpec("features", "float32", (-1, dimension(tower.module, sample(2)))),
        sample,
        tower.notes,
        preprocessing=PreprocessingSpec(**asdict(spec)),
        precision=precision,
    )


def text_part(family: str, tower: TextTower, folder: Path, *, precision: str = "fp32") -> Part:
    """The tower as a model of a family, to be compared on sentences; its tokenizer.json is written into ``folder``.

    Raises:
        SourceError: The tokenizer does not fit the tower, or gives other ids than the original's.
    """
    file = folder / TOKENIZER_FILE
    file.write_text(tower.tokenizer_json, encoding="utf-8")
    check_tokenizer(tower)
    encode = open_tokenizer(folder, tower.tokenizer)

    def sample(batch: int) -> tuple[Tensor, ...]:
        return (torch.from_numpy(encode(golden.texts(batch)).ids),)

    return Part(
        f"{family}-text",
        "text_encoder",
        tower.module,
        (TensorSpec("ids", "int32", (-1, tower.tokenizer.max_length)),),
        TensorSpec("features", "float32", (-1, dimension(tower.module, sample(2)))),
        sample,
        tower.notes,
        extra={TOKENIZER_FILE: file},
        tokenizer=tower.tokenizer,
        precision=precision,
    )


def dimension(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Length of the vectors that a module gives for a batch of two.

    Raises:
        SourceError: It fails, or does not give (2, d) floats.
    """
    try:
        with torch.no_grad():
            output = module(*inputs)
    except Exception as error:
        # Whatever a module's own code raises on a shape that it does not expect.
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{type(module).__name__} fails on inputs of the shape {shapes}: {reason}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2 or not output.is_floating_point():
        got = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise SourceError(f"{type(module).__name__} gives {got} for a batch of 2, a float tensor (2, d) is needed")
    return int(output.shape[1])


def check_preprocessing(tower: ImageTower, pictures: Pictures = golden.pictures) -> None:
    """Hold the preprocessing against the original's on pictures of many shapes.

    Raises:
        SourceError: A pixel differs by more than one step in 255.
    """
    if tower.reference is None:
        return
    std = np.asarray(tower.preprocessing.std, np.float32)[:, None, None]
    for image in pictures(_TRANSFORM_CHECKS):
        expected = np.asarray(tower.reference(image), np.float32)
        actual = to_tensor(image, tower.preprocessing)
        if expected.shape != actual.shape:
            raise SourceError(f"the model's own transform gives {expected.shape}, the preprocessing {actual.shape}")
        difference = float((np.abs(actual - expected) * std).max())
        if difference > _PIXEL_TOLERANCE:
            raise SourceError(
                f"the preprocessing differs from the model's own transform by {255 * difference:.1f} steps of 255 on a "
                f"picture of {image.width} x {image.height}: {tower.preprocessing}"
            )


def check_tokenizer(tower: TextTower) -> None:
    """Hold a tokenizer against the tower that reads its ids, and against the original on odd texts.

    Raises:
        SourceError: It has ids that the tower has no vector for, is longer than the tower reads, or gives other ids
            than the original's.
    """
    spec = tower.tokenizer
    vocabulary = JsonTokenizer.from_str(tower.tokenizer_json).get_vocab(with_added_tokens=True)
    last = max([*vocabulary.values(), spec.pad_id])
    if last >= tower.vocabulary:
        raise SourceError(
            f"the tokenizer has ids up to {last}, the text tower vectors for {tower.vocabulary} tokens: it is another "
            "model's tokenizer, or the tower was not resized with it"
        )
    if spec.max_length > tower.positions:
        raise SourceError(
            f"the tokenizer makes {spec.max_length} tokens of a text, the text tower reads {tower.positions}: set its "
            f"length to {tower.positions} (--max-length)"
        )
    if tower.reference is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / spec.file).write_text(tower.tokenizer_json, encoding="utf-8")
        encode = open_tokenizer(folder, replace(spec, truncate="end"))
        framed = [spec.template.replace("{}", text) for text in golden.ODD_TEXTS]
        expected = np.asarray(tower.reference(framed))
        for text, ours, theirs in zip(golden.ODD_TEXTS, encode(golden.ODD_TEXTS).ids, expected, strict=True):
            if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
                at = int(np.flatnonzero(ours != theirs)[0]) if ours.shape == theirs.shape else 0
                raise SourceError(
                    f"the converted tokenizer differs from the model's own at token {at} of {text[:40]!r}: "
                    f"{ours[at : at + 4].tolist()}, the model's own gives {theirs[at : at + 4].tolist()}"
                )
