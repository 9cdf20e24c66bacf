"""Encoders whose weights can change: made fresh, or read back from the graphs of a family that was trained here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer as WordTokenizer
from torch import Tensor, nn

from likewise.export.manifest import PreprocessingSpec, TensorSpec, TokenizerSpec
from likewise.export.model_repository import Family
from likewise.export.networks import ImageConfig, ImageEncoder, TextConfig, TextEncoder
from likewise.export.parity import ParityError, check_parity
from likewise.export.preprocess import Preprocessing, preprocessing_of
from likewise.export.repository import Part
from likewise.export.tokenizer import Tokenizer, write_word_tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"
_FRESH: Final = ImageConfig()
_MAX_LENGTH: Final = 40
_SIZE: Final = 64


class EncodersError(ValueError):
    """A family's encoders cannot be trained."""


@dataclass(frozen=True, slots=True)
class TrainableFamily:
    """Two torch encoders into one space, and what turns images and texts into their inputs.

    Build one from modules of your own (an open_clip model's two towers, say) to fine-tune them through the Python API.

    Attributes:
        image: (b, 3, s, s) float32 to (b, d) raw features.
        text: (b, n) int32 token ids to (b, d) raw features.
        preprocessing: Of images; s is its size.
        tokenizer_file: The tokenizer.json of ``text``.
        tokenizer: How texts become ids.
    """

    image: nn.Module
    text: nn.Module
    preprocessing: Preprocessing
    tokenizer_file: Path
    tokenizer: TokenizerSpec

    def tokenise(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """(n, max_length) token ids of n texts."""
        settings = asdict(self.tokenizer)
        del settings["file"]
        encode = Tokenizer(self.tokenizer_file, **settings)
        return encode(texts).ids

    def parts(self, family: str, texts: Sequence[str]) -> tuple[Part, Part]:
        """The two models as they are published.

        Args:
            family: Their names begin with it.
            texts: Real ones, to compare the exported graph with the module on.
        """
        size = self.preprocessing.size
        ids = torch.from_numpy(self.tokenise(texts))
        generator = torch.Generator().manual_seed(0)
        self.image.eval()
        self.text.eval()
        with torch.no_grad():
            dim = self.text(ids[:2]).shape[1]

        def images(batch: int) -> tuple[Tensor, ...]:
            return (2 * torch.rand((batch, 3, size, size), generator=generator) - 1,)

        def tokens(batch: int) -> tuple[Tensor, ...]:
            return (ids[torch.arange(batch) % len(ids)],)

        feature = TensorSpec("features", "float32", (-1, dim))
        return (
            Part(
                f"{family}-image",
                "image_encoder",
                self.image,
                (TensorSpec("pixels", "float32", (-1, 3, size, size)),),
                feature,
                images,
                "Raw image features; the score is the inner product of unit vectors.",
                preprocessing=PreprocessingSpec(**asdict(self.preprocessing)),
            ),
            Part(
                f"{family}-text",
                "text_encoder",
                self.text,
                (TensorSpec("ids", "int32", (-1, self.tokenizer.max_length)),),
                feature,
                tokens,
                "Raw text features in the image encoder's space.",
                extra={self.tokenizer.file: self.tokenizer_file},
                tokenizer=self.tokenizer,
            ),
        )


def fresh(texts: Sequence[str], folder: Path, *, seed: int, image: ImageConfig = _FRESH) -> TrainableFamily:
    """A small untrained pair of encoders with a word-level tokenizer over ``texts``, written into ``folder``."""
    file = folder / TOKENIZER_FILE
    size = write_word_tokenizer(file, texts)
    torch.manual_seed(seed)
    text = TextConfig(size, dim=image.dim, max_length=_MAX_LENGTH)
    return TrainableFamily(
        ImageEncoder(image),
        TextEncoder(text),
        Preprocessing(size=_SIZE),
        file,
        TokenizerSpec(TOKENIZER_FILE, _MAX_LENGTH),
    )


def restore(family: Family, texts: Sequence[str], folder: Path, *, seed: int) -> TrainableFamily:
    """Read the weights of a family of ``networks`` back from its graphs; words of ``texts`` that are new are added.

    Args:
        family: Of a repository; its graphs are those that this package exports.
        texts: Captions and conditions that it is to be trained on.
        folder: Where the grown tokenizer is written.
        seed: Of the vectors of new words.

    Raises:
        EncodersError: The graphs are of another form, so their weights cannot be found in them.
    """
    text = family.text_encoder
    if text is None or text.manifest.tokenizer is None:
        raise EncodersError(f"family {family.name!r} has no text encoder to fine-tune")
    spec = text.manifest.tokenizer
    try:
        image_module = _image_module(family.image_encoder.file())
        text_module = _text_module(text.file(), spec.max_length)
        _check(image_module, text_module, family)
    except (KeyError, ValueError, RuntimeError, ParityError) as error:
        raise EncodersError(
            f"the encoders of family {family.name!r} cannot be fine-tuned: their graphs are not those of "
            f"likewise.export.networks ({error}); use --encoders frozen, or build a TrainableFamily from their torch "
            "modules and use the Python API"
        ) from error
    file = folder / TOKENIZER_FILE
    added = _grow_tokenizer(text.file(spec.file), file, texts)
    if added:
        torch.manual_seed(seed)
        old = text_module.words.weight.detach()
        grown = nn.Embedding(len(old) + added, old.shape[1])
        with torch.no_grad():
            grown.weight.copy_(torch.cat([old, old.std() * torch.randn(added, old.shape[1])]))
        text_module.words = grown
    preprocessing = preprocessing_of(family.image_encoder)
    return TrainableFamily(
        image_module, text_module, preprocessing, file, TokenizerSpec(TOKENIZER_FILE, spec.max_length)
    )


def _image_module(path: Path) -> ImageEncoder:
    weights, graph = _read(path)
    strides = {
        node.input[1]: next(a.ints[0] for a in node.attribute if a.name == "strides")
        for node in graph.node
        if node.op_type == "Conv"
    }
    blocks = range(3)
    config = ImageConfig(
        dim=len(weights["head.2.bias"]),
        widths=tuple(len(weights[n]) for n in ("stem.0.weight", *(f"blocks.{i}.conv1.weight" for i in blocks))),  # type: ignore[arg-type]
        strides=tuple(int(strides[f"blocks.{i}.conv1.weight"]) for i in blocks),  # type: ignore[arg-type]
        conjunctions=len(weights["conjunctions.bias"]),
        hidden=len(weights["head.0.bias"]),
    )
    module = ImageEncoder(config)
    state = {name: _tensor(weights[name]) for name in module.state_dict() if name in weights}
    pairs = {"stem.0": "stem.1"} | {f"blocks.{i}.conv{j}": f"blocks.{i}.norm{j}" for i in blocks for j in (1, 2)}
    for convolution, norm in pairs.items():
        # The exporter folds the norm into the convolution: its bias is all that is left, so the norm becomes that.
        bias = _tensor(weights[f"{convolution}.weight_bias"])
        epsilon = module.get_submodule(norm).eps
        state |= {
            f"{norm}.weight": torch.ones_like(bias),
            f"{norm}.bias": bias,
            f"{norm}.running_mean": torch.zeros_like(bias),
            f"{norm}.running_var": torch.full_like(bias, 1 - float(epsilon)),  # type: ignore[arg-type]
            f"{norm}.num_batches_tracked": torch.tensor(0),
        }
    module.load_state_dict(state)
    return module.eval()


def _text_module(path: Path, max_length: int) -> TextEncoder:
    weights, graph = _read(path)
    producers = {name: node for node in graph.node for name in node.output}
    linear: dict[str, npt.NDArray[np.float32]] = {}
    positions = None
    # The exporter stores equal constants once, so norms are told by their place in the graph and not by name.
    norms = [node.input[1:] for node in graph.node if node.op_type == "LayerNormalization"]
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for value, constant in (tuple(node.input), tuple(reversed(node.input))):
            before = producers.get(value)
            if before is None or constant not in weights:
                continue
            if before.op_type == "MatMul" and before.input[1] in weights:
                linear[constant.removesuffix("bias") + "weight"] = weights[before.input[1]].T
            elif before.op_type == "Gather":
                positions = weights[constant]
    if positions is None or len(positions) != max_length:
        raise ValueError("no table of positions")
    vocabulary, width = weights["words.weight"].shape
    layers = len(norms) // 2
    places = [f"blocks.{i // 2}.norm{i % 2 + 1}" for i in range(2 * layers)] + ["norm"]
    placed = {
        f"{place}.{part}": weights[name]
        for place, names in zip(places, norms, strict=True)
        for part, name in zip(("weight", "bias"), names, strict=True)
    }
    dim = len(weights["project.2.bias"])
    module = TextEncoder(TextConfig(vocabulary, dim=dim, width=width, layers=layers, max_length=max_length))
    found = {**weights, **linear, **placed, "positions": positions}
    module.load_state_dict({name: _tensor(found[name]) for name in module.state_dict()})
    return module.eval()


def _check(image: ImageEncoder, text: TextEncoder, family: Family) -> None:
    generator = torch.Generator().manual_seed(0)
    size = preprocessing_of(family.image_encoder).size
    model = family.text_encoder
    assert model is not None  # `restore` looked
    assert model.manifest.tokenizer is not None
    length = model.manifest.tokenizer.max_length

    def pixels(batch: int) -> tuple[Tensor, ...]:
        return (2 * torch.rand((batch, 3, size, size), generator=generator) - 1,)

    def ids(batch: int) -> tuple[Tensor, ...]:
        return (torch.randint(1, text.words.num_embeddings, (batch, length), generator=generator, dtype=torch.int32),)

    check_parity(image, family.image_encoder.file(), pixels, max_batch=8)
    check_parity(text, model.file(), ids, max_batch=8)


def _read(path: Path) -> tuple[Mapping[str, npt.NDArray[np.float32]], onnx.GraphProto]:
    graph = onnx.load(str(path)).graph
    return {one.name: np.array(numpy_helper.to_array(one)) for one in graph.initializer}, graph


def _tensor(array: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _grow_tokenizer(source: Path, target: Path, texts: Sequence[str]) -> int:
    """Copy a word-level tokenizer with the words of ``texts`` added at the end; returns how many were new."""
    content = json.loads(source.read_text(encoding="utf-8"))
    if content["model"]["type"] != "WordLevel":
        raise EncodersError(f"{source} is no word-level tokenizer; new words cannot be added to it")
    tokenizer = WordTokenizer.from_file(str(source))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    words = {
        word
        for text in set(texts)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    new = sorted(words - set(vocabulary))
    start = max(vocabulary.values()) + 1
    vocabulary |= {word: start + i for i, word in enumerate(new)}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return len(new)
