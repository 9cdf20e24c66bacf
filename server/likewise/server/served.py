"""Model versions one by one, as the Open Inference Protocol calls them: by name and version, not by family.

`ServedModels` is the seam. A process that runs graphs itself gives every loaded version, with the graph's own tensors;
`InUse` makes one of any `Models` and gives the versions in use alone.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from likewise.export.manifest import TensorSpec
from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.protocols import Composer, Family, ImageEncoder, Models, TextEncoder
from likewise.v1 import common_pb2, model_service_pb2

Array = npt.NDArray[Any]
Encoder = ImageEncoder | TextEncoder | Composer


@dataclass(frozen=True, slots=True)
class GraphCall:
    """The graph behind an encoder, for callers that make its tensors themselves.

    Attributes:
        inputs: What it takes, named as the graph names it; the first axis, -1, is the batch.
        outputs: What it gives.
        infer: From an array of each input, all of one batch size, to an array of each output, through the same queue
            as everybody's.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    infer: Callable[[Mapping[str, Array]], Awaitable[Mapping[str, Array]]]


@dataclass(frozen=True, slots=True)
class Served:
    """A version of a model that can be called.

    Attributes:
        kind: Which of the three protocols `encoder` is.
        encoder: Takes what people have: encoded images, texts, pairs of embeddings.
        dim: Numbers of a row of its output.
        max_batch: Most rows of one run; longer calls are cut. 0 when it is not known here.
        graph: The graph itself; None when it is in another process.
    """

    kind: "model_service_pb2.ModelKind.ValueType"
    encoder: Encoder
    dim: int
    max_batch: int = 0
    graph: GraphCall | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self.encoder.model


class ServedModels(Protocol):
    """The model versions of a process."""

    def models(self) -> Sequence[model_service_pb2.Model]:
        """Every model version known, by name, then version."""
        ...

    def serving(self, name: str, version: int | None) -> contextlib.AbstractContextManager[Served]:
        """A version, not freed inside the block; the one in use if none is named.

        Raises:
            NotFound: If there is no such model or version; said when the block is entered.
            FailedPrecondition: If that version is not loaded.
        """
        ...


class InUse:
    """`ServedModels` of the versions that the families of `Models` have in use, without their graphs."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def models(self) -> Sequence[model_service_pb2.Model]:
        """See `ServedModels.models`."""
        return self._models.models()

    @contextlib.contextmanager
    def serving(self, name: str, version: int | None) -> Iterator[Served]:
        """See `ServedModels.serving`."""
        known = find(self.models(), name, version)
        for model in known:
            family = self._models.family(model.family)
            encoder = _encoder(family, model.kind)
            if encoder is not None and encoder.model.name == name and encoder.model.version == model.version:
                with family.lease():
                    yield Served(model.kind, encoder, family.dim)
                return
        raise FailedPrecondition(
            f"{name}/{known[-1].version} is not in use: this server calls the versions in use, promote it first",
            reason="MODEL_NOT_LOADED",
            metadata={"model": name, "version": str(known[-1].version)},
        )


def find(
    models: Sequence[model_service_pb2.Model], name: str, version: int | None
) -> Sequence[model_service_pb2.Model]:
    """The versions of a model, or the one that is named; at least one.

    Raises:
        NotFound: Naming what there is.
    """
    versions = [model for model in models if model.name == name]
    if not versions:
        known = sorted({model.name for model in models})
        raise NotFound(f"no model {name!r} here, there are {known}", reason="MODEL_NOT_FOUND", field="model_name")
    if version is None:
        return versions
    named = [model for model in versions if model.version == version]
    if not named:
        numbers = [model.version for model in versions]
        raise NotFound(
            f"model {name!r} has no version {version} here, there are {numbers}",
            reason="MODEL_NOT_FOUND",
            field="model_version",
        )
    return named


def _encoder(family: Family, kind: int) -> Encoder | None:
    if kind == model_service_pb2.MODEL_KIND_IMAGE_ENCODER:
        return family.image
    return family.text if kind == model_service_pb2.MODEL_KIND_TEXT_ENCODER else family.composer
