"""What a module takes and gives, as text: ``pixels: float32[b, 3, 224, 224] -> features: float32[b, 512]``.

The batch is the letter b. The form says what the module is: one float input of four dimensions is an image encoder, one
int32 input of two a text encoder, the two inputs ``reference`` and ``condition`` a composer.
"""

import re
from dataclasses import dataclass
from typing import Final

from likewise.export.manifest import Kind, TensorSpec
from likewise.export.sources.checkpoint import SourceError

_TENSOR: Final = re.compile(r"([A-Za-z_]\w*)\s*:\s*(float32|int32)\s*\[\s*b((?:\s*,\s*[1-9]\d*)+)\s*\]")
_EXAMPLES: Final = (
    "'pixels: float32[b, 3, 224, 224] -> features: float32[b, 512]', "
    "'ids: int32[b, 77] -> features: float32[b, 512]' or "
    "'reference: float32[b, 512], condition: float32[b, 512] -> query: float32[b, 512]'"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A module's inputs, in the order of its forward(), and its one output.

    Attributes:
        kind: What it is.
        inputs: With -1 for the batch.
        output: (-1, dim) float32.
    """

    kind: Kind
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self.output.shape[1]


def parse_signature(text: str) -> Signature:
    """Read a signature.

    Raises:
        SourceError: It is none, or of no kind of model that is served.
    """
    left, arrow, right = text.partition("->")
    inputs, outputs = _tensors(left, text), _tensors(right, text) if arrow else ()
    if len(outputs) != 1:
        raise SourceError(f"a signature has one output, after an arrow; got {text!r}, expected such as {_EXAMPLES}")
    output = outputs[0]
    if output.dtype != "float32" or len(output.shape) != 2:
        raise SourceError(f"the output must be float32[b, dim], got {output.dtype}{_shown(output)} in {text!r}")
    return Signature(_kind(inputs, output, text), inputs, output)


def composer_signature(dim: int) -> Signature:
    """A composer's in a space of ``dim`` numbers."""
    shape = (-1, dim)
    inputs = (TensorSpec("reference", "float32", shape), TensorSpec("condition", "float32", shape))
    return Signature("composer", inputs, TensorSpec("query", "float32", shape))


def _tensors(text: str, whole: str) -> tuple[TensorSpec, ...]:
    found, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TENSOR.match(text, position)
        if match is None:
            raise SourceError(
                f"the signature cannot be read from {text[position : position + 40]!r} on; got {whole!r}, expected "
                "such "
                f"as {_EXAMPLES}"
            )
        name, dtype, sizes = match.groups()
        found.append(TensorSpec(name, dtype, (-1, *(int(n) for n in re.findall(r"\d+", sizes)))))
        rest = re.compile(r"\s*,?\s*").match(text, match.end())
        position = rest.end() if rest else len(text)
    return tuple(found)


def _kind(inputs: tuple[TensorSpec, ...], output: TensorSpec, text: str) -> Kind:
    dim = output.shape[1]
    if len(inputs) == 1:
        (only,) = inputs
        if only.dtype == "float32" and len(only.shape) == 4:
            if only.shape[1] != 3 or only.shape[2] != only.shape[3]:
                raise SourceError(f"an image encoder reads float32[b, 3, s, s], got {_shown(only)} in {text!r}")
            return "image_encoder"
        if only.dtype == "int32" and len(only.shape) == 2:
            return "text_encoder"
    if {spec.name for spec in inputs} == {"reference", "condition"}:
        wrong = [spec for spec in inputs if spec.dtype != "float32" or spec.shape != (-1, dim)]
        if wrong:
            raise SourceError(
                f"a composer reads and gives vectors of one space: {wrong[0].name} is "
                f"{wrong[0].dtype}{_shown(wrong[0])}, "
                f"the output has {dim} numbers"
            )
        return "composer"
    raise SourceError(f"{text!r} is no kind of model that is served; there are {_EXAMPLES}")


def _shown(spec: TensorSpec) -> str:
    return "[" + ", ".join("b" if n == -1 else str(n) for n in spec.shape) + "]"
