"""ONNX Runtime on CPU for export checks and evaluation; the export side's one door to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from likewise.export.manifest import Family, ManifestError, load_repository
from likewise.export.preprocess import preprocessing_of
from likewise.export.tokenizer import tokenizer_of

F32 = npt.NDArray[np.float32]


def open_session(path: Path, *, threads: int = 0) -> ort.InferenceSession:
    """A CPU session of a graph; ``threads`` 0 uses every core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: ort.InferenceSession, *inputs: npt.NDArray[Any]) -> F32:
    """The first output for inputs in the graph's order."""
    names = [node.name for node in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(output, np.float32)


class OnnxFamily:
    """Image encoder, text encoder and composer of one family on CPU; a ``benchmark.Model``."""

    def __init__(self, family: Family) -> None:
        image, text, composer = family.image_encoder, family.text_encoder, family.composer
        if text is None or composer is None:
            raise ManifestError(f"family {family.name!r} has no text encoder or no composer")
        self.preprocessing = preprocessing_of(image)
        self._tokenizer = tokenizer_of(text)
        self._image, self._text, self._composer = (open_session(m.file()) for m in (image, text, composer))

    def encode_images(self, images: F32) -> F32:
        """(n, 3, size, size) to (n, d) raw features."""
        return run_graph(self._image, images)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Texts to (n, d) raw features."""
        return run_graph(self._text, self._tokenizer(texts).ids)

    def compose(self, references: F32, conditions: F32) -> F32:
        """(n, d) raw image and (n, d) raw text features to (n, d) unit queries."""
        return run_graph(self._composer, references, conditions)


def load_family(repository: Path | None, name: str) -> OnnxFamily:
    """Open a family of a repository (the built-in one by default).

    Raises:
        ManifestError: The repository is damaged or holds no such family.
    """
    return OnnxFamily(load_repository(repository).family(name))
