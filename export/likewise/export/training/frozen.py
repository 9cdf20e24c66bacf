"""A family's exported encoders through ONNX Runtime: features of a whole corpus, computed once and kept on disk."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from likewise.export.model_repository import Family
from likewise.export.preprocess import Preprocessing, preprocessing_of
from likewise.export.runtime import open_session, run_graph
from likewise.export.tokenizer import tokenizer_of
from likewise.export.training.augment import augment
from likewise.export.training.progress import Progress, TrainingError, silent

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_TEXTS: Final = 256


class FrozenEncoders:
    """The image and the text encoder of a family, on CPU.

    Args:
        family: Of a repository.
        threads: Of each graph; 0 uses every core.

    Raises:
        TrainingError: The family has no text encoder, or its graphs are not here.
    """

    def __init__(self, family: Family, *, threads: int = 0) -> None:
        if family.text_encoder is None:
            raise TrainingError(f"family {family.name!r} has no text encoder: a composer needs one to read conditions")
        for model in (family.image_encoder, family.text_encoder):
            if model.manifest.endpoint is not None:
                raise TrainingError(
                    f"model {model.manifest.name!r} runs at {model.manifest.endpoint.address}: training needs its "
                    "graph in the repository"
                )
        self.family = family
        self.preprocessing: Preprocessing = preprocessing_of(family.image_encoder)
        self.dim: int = family.image_encoder.manifest.dim
        self.space: str = family.image_encoder.manifest.space
        self._tokenizer = tokenizer_of(family.text_encoder)
        self._image = open_session(family.image_encoder.file(), threads=threads)
        self._text = open_session(family.text_encoder.file(), threads=threads)

    def encode_images(self, pixels: F32) -> F32:
        """(b, 3, s, s) normalised pixels to (b, d) raw features."""
        return run_graph(self._image, pixels)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Any n texts to (n, d) raw features."""
        ids = self._tokenizer(texts).ids
        return np.concatenate([run_graph(self._text, ids[i : i + _TEXTS]) for i in range(0, len(ids), _TEXTS)])

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """Those of some words that the text encoder's vocabulary does not hold."""
        unknown = self._tokenizer(words).unknown > 0
        return [word for word, missing in zip(words, unknown.tolist(), strict=True) if missing]


def encode_corpus(
    encoders: FrozenEncoders,
    batches: Iterator[tuple[int, F32]],
    count: int,
    *,
    views: int,
    seed: int,
    progress: Progress = silent,
) -> F32:
    """Features of a corpus.

    Args:
        encoders: What computes them.
        batches: (start, (b, 3, s, s) normalised pixels), in order.
        count: Number of images.
        views: Of each image; the first is the image as it is served, the others are changed a little.
        seed: Of the changes.
        progress: Told of every batch.

    Returns:
        (views, count, d) raw features.

    Raises:
        TrainingError: A feature is not finite.
    """
    features = np.zeros((views, count, encoders.dim), np.float32)
    for start, pixels in batches:
        stop = start + len(pixels)
        for view in range(views):
            seen = pixels
            if view:
                changed = augment(torch.from_numpy(pixels), np.random.default_rng((seed, 31, view, start)))
                seen = np.ascontiguousarray(changed.numpy())
            features[view, start:stop] = encoders.encode_images(seen)
        progress("encoding images", stop / count, f"{stop:,} of {count:,}")
    wrong = ~np.isfinite(features).all((0, 2))
    if wrong.any():
        raise TrainingError(
            f"the image encoder {encoders.family.image_encoder.manifest.name!r} gives features that are not finite for "
            f"{int(wrong.sum())} images, the first is image {int(wrong.argmax())}"
        )
    return features


def kept(
    path: Path, identity: Mapping[str, Any], make: Callable[[Path], Mapping[int, str]]
) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """The array at ``path`` if it was made for ``identity``, else what ``make`` writes there; memory-mapped.

    The note of what it was made for is written last, so an array that was cut short is made anew.

    Args:
        path: An .npy file; the note lies beside it.
        identity: Plain values that decide what the array holds.
        make: Writes the array and returns what is wrong with single rows.

    Returns:
        The array, and what is wrong with single rows.
    """
    note = path.with_suffix(".json")
    found = json.loads(note.read_text(encoding="utf-8")) if path.exists() and note.exists() else {}
    if found.get("identity") != json.loads(json.dumps(identity)):
        note.unlink(missing_ok=True)
        found = {"identity": identity, "wrong": {str(row): reason for row, reason in make(path).items()}}
        note.write_text(json.dumps(found), encoding="utf-8")
    return np.load(path, mmap_mode="r"), {int(row): reason for row, reason in found["wrong"].items()}
