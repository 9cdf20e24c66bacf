"""Manifests of exported models: what one says, and every check that needs no other file; standard library only."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MODEL_FILE: Final = "model.onnx"

Kind = Literal["image_encoder", "text_encoder", "composer"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
PRECISIONS: Final = ("fp32", "fp16", "int8")

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST_BYTES: Final = 1 << 20


class ManifestError(ValueError):
    """A manifest or a model repository is missing, damaged, or of a format this version does not read."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; -1 in ``shape`` is the dynamic batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreprocessingSpec:
    """Fields of ``preprocess.Preprocessing``, kept here without its imports.

    A field added after the first release has a default, and takes part in ``space_digest`` only where it differs from
    it: spaces made before it was added keep their identity.
    """

    size: int
    resize: str
    crop: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targetpad: float | None = None
    rounding: str = "nearest"
    resize_to: int | None = None


_LATER_PREPROCESSING: Final[Mapping[str, Any]] = {"rounding": "nearest", "resize_to": None}


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """How a text becomes token ids: arguments of ``tokenizer.Tokenizer``; ``file`` lies beside the manifest."""

    file: str
    max_length: int
    pad_id: int = 0
    template: str = "{}"
    truncate: str = "end"
    cleaning: str = "none"
    pad_side: str = "right"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An Open Inference Protocol server that runs the graph instead of this process.

    Attributes:
        address: "host:port" of its gRPC service.
        model: Name of the model there.
        version: Version there; empty for the server's choice.
        contents: "tensors": preprocessing and tokenising happen here, the graph's own inputs and outputs are named
            by the manifest; "bytes": the server takes encoded images and texts itself.
    """

    address: str
    model: str
    version: str = ""
    contents: Literal["tensors", "bytes"] = "tensors"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one version of one exported model is.

    Attributes:
        name: Name in the repository.
        version: From 1.
        kind: What it does.
        family: Models that belong together ("shapes").
        dim: Dimension of its space.
        space: Digest of the embedding space that it writes to, see ``space_digest``.
        inputs: Of the graph.
        outputs: Of the graph.
        files: SHA-256 of each file beside the manifest, in hex.
        preprocessing: Of an image encoder.
        tokenizer: Of a text encoder.
        condition_templates: Of a composer: condition mode to text frame, "{}" is the text that was typed.
        precision: Of the weights: "fp32", "fp16" or "int8"; inputs and outputs are float32 whatever it is.
        compatible_with: Digest of an older space to the number of leading output numbers that may be compared with
            its vectors, once brought to unit length: what backward-compatible training promises.
        endpoint: Where the graph runs, if not in this process; there is no ``model.onnx`` then.
        notes: What outputs and scores mean.
        max_batch: Largest batch that parity was checked with.
        created_with: Versions of the libraries that made it.
        evaluation: Figures measured when it was made.
        format: Of the manifest.
    """

    name: str
    version: int
    kind: Kind
    family: str
    dim: int
    space: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str]
    preprocessing: PreprocessingSpec | None = None
    tokenizer: TokenizerSpec | None = None
    condition_templates: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    compatible_with: Mapping[str, int] = field(default_factory=dict)
    endpoint: Endpoint | None = None
    notes: str = ""
    max_batch: int = 64
    created_with: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(files: Mapping[str, str]) -> str:
    """What identifies a model's graph and weights, from the SHA-256 of its files, in hex.

    With the weights inside, that is the SHA-256 of ``model.onnx``. A graph with external data holds none of them: two
    trainings of one architecture have the same graph, so the data files take part.

    Args:
        files: A manifest's.

    Returns:
        64 hex digits.
    """
    weights = {name: digest for name, digest in files.items() if name.startswith(MODEL_FILE)}
    if len(weights) == 1:
        return weights[MODEL_FILE]
    canonical = json.dumps(weights, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def space_digest(*, model_sha256: str, preprocessing: PreprocessingSpec, dim: int) -> str:
    """Identity of an embedding space: a hash over all that decides what a vector of it means.

    Args:
        model_sha256: Of the image encoder, from ``weights_sha256``.
        preprocessing: What comes before it.
        dim: Length of its vectors, which are stored at unit length.

    Returns:
        "sha256:" and 64 hex digits.
    """
    before = {
        name: value
        for name, value in asdict(preprocessing).items()
        if name not in _LATER_PREPROCESSING or value != _LATER_PREPROCESSING[name]
    }
    content = {"dim": dim, "image_encoder": model_sha256, "normalised": True, "preprocessing": before}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON, in a fixed order of keys."""
    path.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: The file is missing, is not such a manifest, or is of another format.
    """
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ManifestError(f"{path}: manifest has over {_MAX_MANIFEST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{path}: cannot be read as a manifest: {error}") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: expected a JSON object, got {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise ManifestError(f"{path}: manifest format {content.get('format')!r}, this version reads {FORMAT}")
    try:
        manifest = _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path}: {error}") from error
    return manifest


def _from_json(content: dict[str, Any]) -> Manifest:
    known = {f.name for f in fields(Manifest)}
    unknown, missing = set(content) - known, {"name", "version", "kind", "family", "dim", "space"} - set(content)
    if unknown or missing:
        raise ValueError(f"unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    values = dict(content)
    values["inputs"] = _tensors(content["inputs"])
    values["outputs"] = _tensors(content["outputs"])
    if content.get("preprocessing") is not None:
        spec = dict(content["preprocessing"])
        values["preprocessing"] = PreprocessingSpec(**spec | {"mean": tuple(spec["mean"]), "std": tuple(spec["std"])})
    if content.get("tokenizer") is not None:
        values["tokenizer"] = TokenizerSpec(**content["tokenizer"])
    if content.get("endpoint") is not None:
        values["endpoint"] = Endpoint(**content["endpoint"])
    manifest = Manifest(**values)
    _check(manifest)
    return manifest


def _check_endpoint(endpoint: Endpoint) -> None:
    host, colon, port = endpoint.address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"endpoint address must be host:port, got {endpoint.address!r}")
    if not endpoint.model:
        raise ValueError("the endpoint needs the name of the model there")
    if endpoint.contents not in ("tensors", "bytes"):
        raise ValueError(f"endpoint contents must be 'tensors' or 'bytes', got {endpoint.contents!r}")


def _tensors(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(r["name"]), str(r["dtype"]), tuple(int(n) for n in r["shape"])) for r in rows)


def _check(manifest: Manifest) -> None:
    for label, name in (("name", manifest.name), ("family", manifest.family)):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{label} must match {_NAME.pattern}, got {name!r}")
    if manifest.kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {manifest.kind!r}")
    for label, number in (("version", manifest.version), ("dim", manifest.dim), ("max_batch", manifest.max_batch)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{label} must be an integer from 1, got {number!r}")
    if manifest.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {manifest.precision!r}")
    for digest, leading in manifest.compatible_with.items():
        if not isinstance(leading, int) or not 1 <= leading <= manifest.dim:
            raise ValueError(f"compatible_with {digest!r} must be 1 to {manifest.dim} leading numbers, got {leading!r}")
    if manifest.endpoint is not None:
        _check_endpoint(manifest.endpoint)
    elif MODEL_FILE not in manifest.files:
        raise ValueError(f"files must name {MODEL_FILE}, got {sorted(manifest.files)}")
    for name, digest in manifest.files.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"file name {name!r} must be a plain name without folders")
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"SHA-256 of {name!r} must be 64 hex digits, got {digest!r}")
    # A server that takes files and texts itself needs neither from us.
    here = manifest.endpoint is None or manifest.endpoint.contents == "tensors"
    if here and manifest.kind == "image_encoder" and manifest.preprocessing is None:
        raise ValueError("an image encoder needs preprocessing")
    if here and manifest.kind == "text_encoder":
        if manifest.tokenizer is None:
            raise ValueError("a text encoder needs a tokenizer")
        if manifest.tokenizer.file not in manifest.files:
            raise ValueError(f"the tokenizer's file {manifest.tokenizer.file!r} is not among files")
    for mode, template in manifest.condition_templates.items():
        if template.count("{}") != 1:
            raise ValueError(f"condition template of {mode!r} must hold '{{}}' once, got {template!r}")
