"""From raw features of a reference and a condition to a unit query: baselines, and composers of a model repository."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.task import Mode
from likewise.export.manifest import Manifest
from likewise.export.model_repository import Model, load_repository

F64 = npt.NDArray[np.float64]

NAMES: Final = "image, text, sum:W, unit-sum:W or the name of a composer in the model repository"
_UNSPECIFIED: Final = "unspecified"


class Composer(Protocol):
    """Makes queries."""

    @property
    def name(self) -> str:
        """As asked for."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """Mode ("" for none) to text frame, "{}" being the condition as it stands."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it needs text features at all."""
        ...

    def check(self, image_dim: int, text_dim: int) -> None:
        """Refuse features of dimensions that do not fit; `text_dim` is 0 where there are none.

        Raises:
            EvaluationError: They do not fit.
        """
        ...

    def compose(self, references: F64, conditions: F64) -> F64:
        """(n, d) raw image features and (n, e) raw text features to (n, d) unit queries; zero where nothing is left."""
        ...


@dataclass(frozen=True, slots=True)
class Sum:
    """(1 - w) image + w text, then normalised; of raw features as in GeneCIS's baselines, or of unit ones.

    `utils/model_utils.py::FeatureComb` of the official code has raw features at equal weight; its parameter is
    the image's share, 1 - w.
    """

    name: str
    weight: float
    unit_features: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads_text(self) -> bool:
        """Whether the text counts at all."""
        return self.weight > 0

    def check(self, image_dim: int, text_dim: int) -> None:
        """See `Composer`."""
        if self.reads_text and image_dim != text_dim:
            raise EvaluationError(
                f"composer {self.name!r} compares image and text features of one space: the image features have "
                f"{image_dim:,} numbers, the text features {text_dim:,}; take both from one model"
            )

    def compose(self, references: F64, conditions: F64) -> F64:
        """See `Composer`."""
        if not self.reads_text:
            return unit_rows(references)
        if self.unit_features:
            references, conditions = unit_rows(references), unit_rows(conditions)
        return unit_rows((1 - self.weight) * references + self.weight * conditions)


class ModelComposer:
    """A composer of a model repository, run by ONNX Runtime on the CPU in float32."""

    reads_text = True

    def __init__(self, name: str, model: Model) -> None:
        from likewise.export.runtime import open_session  # onnxruntime only where a model is run

        self.name = name
        self._manifest = model.manifest
        composer_dims(self._manifest)
        self.prompts = {
            ("" if mode == _UNSPECIFIED else mode): frame for mode, frame in self._manifest.condition_templates.items()
        }
        self._session = open_session(model.file())

    def check(self, image_dim: int, text_dim: int) -> None:
        """See `Composer`."""
        got = {"reference": image_dim, "condition": text_dim, "query": image_dim}
        for what, wanted in composer_dims(self._manifest).items():
            if (dim := got[what]) != wanted:
                file = "text" if what == "condition" else "image"
                raise EvaluationError(
                    f"composer {self.name!r} has {wanted:,} numbers for its {what}, the {file} features have {dim:,}; "
                    "features and composer must be of one family"
                )

    def compose(self, references: F64, conditions: F64) -> F64:
        """See `Composer`."""
        step = self._manifest.max_batch
        given = {"reference": references.astype(np.float32), "condition": conditions.astype(np.float32)}
        made = [
            self._session.run(None, {name: rows[start : start + step] for name, rows in given.items()})[0]
            for start in range(0, len(references), step)
        ]
        return unit_rows(np.concatenate(made).astype(np.float64))


def make_composer(name: str, repository: Path | None = None) -> Composer:
    """A composer by name.

    Args:
        name: "image"; "text"; "sum:W" and "unit-sum:W" with the text's weight W in [0, 1]; or a composer of the
            repository, its newest version unless the name ends in "/<version>".
        repository: Its folder; the built-in one by default.

    Raises:
        EvaluationError: There is no such composer.
        ManifestError: The repository is damaged.
    """
    kind, colon, weight = name.partition(":")
    if name == "image":
        return Sum(name, 0.0)
    if name == "text":
        return Sum(name, 1.0)
    if kind in ("sum", "unit-sum"):
        return Sum(name, _weight(name, weight if colon else ""), unit_features=kind == "unit-sum")
    return ModelComposer(name, _find(name, repository))


def composer_dims(manifest: Manifest) -> dict[str, int]:
    """Numbers of a composer's "reference", "condition" and "query".

    Raises:
        EvaluationError: It has other inputs and outputs than these.
    """
    inputs = {spec.name: spec.shape for spec in manifest.inputs}
    outputs = [spec.shape for spec in manifest.outputs]
    if set(inputs) != {"reference", "condition"} or len(outputs) != 1:
        raise EvaluationError(
            f"model {manifest.name!r}: a composer has the inputs 'reference' and 'condition' and one output, this has "
            f"{sorted(inputs)} and {len(outputs)}; export it as one"
        )
    shapes = inputs | {"query": outputs[0]}
    if any(len(shape) != 2 for shape in shapes.values()):
        raise EvaluationError(f"model {manifest.name!r}: a composer's tensors are (n, numbers), these are {shapes}")
    return {name: shape[1] for name, shape in shapes.items()}


def unit_rows(rows: F64) -> F64:
    """Rows at length one; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0), np.float64)


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise EvaluationError(f"composer {name!r}: the text's weight must be a number from 0 to 1, as in {'sum:0.5'!r}")
    return weight


def _find(name: str, repository: Path | None) -> Model:
    models = load_repository(repository)
    wanted, slash, version = name.partition("/")
    found = [
        model
        for model in models.models
        if model.manifest.name == wanted and (not slash or str(model.manifest.version) == version)
    ]
    if not found:
        known = sorted({model.manifest.name for model in models.models if model.manifest.kind == "composer"})
        raise EvaluationError(
            f"no composer {name!r}: expected {NAMES} ({models.path} has {', '.join(known) or 'none'})"
        )
    model = max(found, key=lambda one: one.manifest.version)
    if model.manifest.kind != "composer":
        raise EvaluationError(f"model {wanted!r} is no composer, its kind is {model.manifest.kind.replace('_', ' ')}")
    if model.manifest.endpoint is not None:
        raise EvaluationError(f"composer {wanted!r} runs on another server; measure it with --server")
    return model


def framed(prompts: Mapping[str, str], text: str, mode: Mode) -> str:
    """A condition in the frame of its mode; as it stands where there is no frame."""
    return prompts.get(mode, "{}").replace("{}", text)
