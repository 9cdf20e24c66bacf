"""The trained shapes model as a measurable family and as a model repository."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from likewise.export.manifest import PreprocessingSpec, TensorSpec, TokenizerSpec
from likewise.export.preprocess import Preprocessing
from likewise.export.repository import Part, write_family
from likewise.export.shapes.conditions import CONDITION_TEMPLATES
from likewise.export.shapes.train import ShapesModel
from likewise.export.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]

FAMILY: Final = "shapes"
TOKENIZER_FILE: Final = "tokenizer.json"
MAX_LENGTH: Final = 40
PREPROCESSING: Final = Preprocessing(size=64)


class TorchFamily:
    """The torch model as a ``benchmark.Model``, for validation during training."""

    preprocessing = PREPROCESSING

    def __init__(self, model: ShapesModel, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @torch.no_grad()
    def encode_images(self, images: F32) -> F32:
        """(n, 3, 64, 64) to (n, d) raw features."""
        return np.asarray(self._model.image(torch.from_numpy(images)).numpy(), np.float32)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Texts to (n, d) raw features."""
        return np.asarray(self._model.text(torch.from_numpy(self._tokenizer(texts).ids)).numpy(), np.float32)

    @torch.no_grad()
    def compose(self, references: F32, conditions: F32) -> F32:
        """Raw features to (n, d) unit queries."""
        query = self._model.combiner(torch.from_numpy(references), torch.from_numpy(conditions))
        return np.asarray(query.numpy(), np.float32)


def publish(
    model: ShapesModel, tokenizer_file: Path, path: Path, *, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Write the three models of the family "shapes" into the repository at ``path``.

    Raises:
        ParityError: A graph differs from its module; ``path`` is unchanged.
    """
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    dim = model.combiner.output.out_features
    vocabulary = model.text.words.num_embeddings
    generator = torch.Generator().manual_seed(0)

    def images(batch: int) -> tuple[Tensor, ...]:
        return (2 * torch.rand((batch, 3, 64, 64), generator=generator) - 1,)

    def texts(batch: int) -> tuple[Tensor, ...]:
        ids = torch.randint(1, vocabulary, (batch, MAX_LENGTH), generator=generator, dtype=torch.int32)
        lengths = torch.randint(1, MAX_LENGTH + 1, (batch, 1), generator=generator)
        return (ids * (torch.arange(MAX_LENGTH) < lengths).int(),)

    def features(batch: int) -> tuple[Tensor, ...]:
        return (
            4 * torch.randn((batch, dim), generator=generator),
            4 * torch.randn((batch, dim), generator=generator),
        )

    feature = TensorSpec("features", "float32", (-1, dim))
    parts = (
        Part(
            "shapes-image",
            "image_encoder",
            model.image,
            (TensorSpec("pixels", "float32", (-1, 3, 64, 64)),),
            feature,
            images,
            "Raw image features; store the unit vector and its norm. The score is the inner product of unit vectors.",
            preprocessing=PreprocessingSpec(**asdict(PREPROCESSING)),
        ),
        Part(
            "shapes-text",
            "text_encoder",
            model.text,
            (TensorSpec("ids", "int32", (-1, MAX_LENGTH)),),
            feature,
            texts,
            "Raw text features in the image encoder's space: the unit vector searches images directly.",
            extra={TOKENIZER_FILE: tokenizer_file},
            tokenizer=TokenizerSpec(TOKENIZER_FILE, MAX_LENGTH),
        ),
        Part(
            "shapes-composer",
            "composer",
            model.combiner,
            (
                TensorSpec("reference", "float32", (-1, dim)),
                TensorSpec("condition", "float32", (-1, dim)),
            ),
            TensorSpec("query", "float32", (-1, dim)),
            features,
            "Takes raw features (unit vector times norm) and gives a unit query in the image encoder's space.",
            condition_templates=CONDITION_TEMPLATES,
        ),
    )
    write_family(path, FAMILY, parts, dim=dim, evaluation=evaluation)
