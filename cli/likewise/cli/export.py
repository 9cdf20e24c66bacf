"""`likewise export`: from a torch model to a family of a model repository, checked on the way."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from likewise.client.cli.output import print_json, print_table
from likewise.export.manifest import ManifestError
from likewise.export.model_repository import Model
from likewise.export.parity import ParityError
from likewise.export.sources.checkpoint import SourceError
from likewise.export.sources.composer import MODES, combiner
from likewise.export.sources.module import make_module
from likewise.export.sources.publish import Target, publish_composer, publish_module, publish_source
from likewise.export.sources.signature import parse_signature
from likewise.export.sources.towers import Source
from likewise.export.to_onnx import ExportError

app = typer.Typer(
    help="Export models to ONNX into a model repository, compared with the original first.",
    no_args_is_help=True,
    add_completion=False,
)

_REFUSALS: Final = (SourceError, ExportError, ParityError, ManifestError)
_DIGEST: Final = re.compile(r"(sha256:[0-9a-f]+):(\d+)")

Out = Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Model repository; made if it is not there.")]
Family = Annotated[str | None, typer.Option(help="Name of the family; made of the model's name if not given.")]
Precision = Annotated[
    str,
    typer.Option(help="fp32; fp16 for GPUs, norms and softmax kept fp32; int8 for CPUs, weights of MatMul and Gemm."),
]
Version = Annotated[int | None, typer.Option(min=1, help="Version to write; the next free one if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace that version if it is there.")]
MaxBatch = Annotated[int, typer.Option(min=1, max=4096, help="Largest batch that is checked and served.")]
Compatible = Annotated[
    list[str] | None,
    typer.Option(metavar="DIGEST:DIMS", help="An older space whose vectors stay comparable, and on how many numbers."),
]
Pictures = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Pictures of yours to check on; made up if not given.")
]
ExternalData = Annotated[
    int, typer.Option(min=0, help="Bytes of weights from which they lie in model.onnx.data beside the graph.")
]
Preprocess = Annotated[
    str | None, typer.Option(metavar="JSON", help="Preprocessing fields to set, such as '{\"targetpad\": 1.25}'.")
]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Tokens of a text; as the model has it if not given.")]
TextTemplate = Annotated[str, typer.Option(metavar="TEXT", help="Frame of every text; {} is the text.")]
Truncate = Annotated[str, typer.Option(help="A text that is too long: end (cut, with a warning) or error.")]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="MODE=TEXT", help=f"Frame of a condition in a mode ({', '.join(MODES)})."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")]

_REPOSITORY: Final = Path("models")
_EXTERNAL: Final = 1 << 30


@app.command("open_clip")
def open_clip(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ViT-B-32, hf-hub:ORG/REPO, or a folder.")],
    *,
    pretrained: Annotated[str | None, typer.Option(metavar="TAG|FILE", help="Weights of a model by name.")] = None,
    quick_gelu: Annotated[
        bool, typer.Option("--quick-gelu", help="The file's weights were trained with QuickGELU (OpenAI's were).")
    ] = False,
    out: Out = _REPOSITORY,
    family: Family = None,
    precision: Precision = "fp32",
    version: Version = None,
    overwrite: Overwrite = False,
    max_batch: MaxBatch = 32,
    compatible_with: Compatible = None,
    pictures: Pictures = None,
    external_data_over: ExternalData = _EXTERNAL,
    preprocess: Preprocess = None,
    max_length: MaxLength = None,
    text_template: TextTemplate = "{}",
    truncate: Truncate = "end",
    as_json: AsJson = False,
) -> None:
    """Export a model of open_clip: image and text encoder."""

    def load() -> Source:
        from likewise.export.sources import openclip

        return openclip.load(
            name,
            pretrained=pretrained,
            quick_gelu=quick_gelu,
            max_length=max_length,
            template=text_template,
            truncate=truncate,
        )

    with _refusals():
        target = _target(
            out, family, precision, version, overwrite, max_batch, compatible_with, pictures, external_data_over
        )
        _export_source(load, target, _fields(preprocess), as_json=as_json)


@app.command("transformers")
def transformers(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="openai/clip-vit-base-patch32 and the like, or a folder.")
    ],
    *,
    out: Out = _REPOSITORY,
    family: Family = None,
    precision: Precision = "fp32",
    version: Version = None,
    overwrite: Overwrite = False,
    max_batch: MaxBatch = 32,
    compatible_with: Compatible = None,
    pictures: Pictures = None,
    external_data_over: ExternalData = _EXTERNAL,
    preprocess: Preprocess = None,
    max_length: MaxLength = None,
    text_template: TextTemplate = "{}",
    truncate: Truncate = "end",
    as_json: AsJson = False,
) -> None:
    """Export a model of transformers: CLIP and SigLIP with both encoders, ViT and DINO with one."""

    def load() -> Source:
        from likewise.export.sources import hugging_face

        return hugging_face.load(name, max_length=max_length, template=text_template, truncate=truncate)

    with _refusals():
        target = _target(
            out, family, precision, version, overwrite, max_batch, compatible_with, pictures, external_data_over
        )
        _export_source(load, target, _fields(preprocess), as_json=as_json)


@app.command("composer")
def composer(
    weights: Annotated[Path, typer.Argument(metavar="STATE_DICT", help="The composer's weights: .pt or .safetensors.")],
    *,
    family: Annotated[str, typer.Option(help="The family that it composes for; it has to be in the repository.")],
    factory: Annotated[
        str | None,
        typer.Option(metavar="PACKAGE.MODULE:NAME", help="What makes the module; the GeneCIS Combiner if not given."),
    ] = None,
    template: Templates = None,
    out: Out = _REPOSITORY,
    precision: Precision = "fp32",
    version: Version = None,
    overwrite: Overwrite = False,
    max_batch: MaxBatch = 32,
    pictures: Pictures = None,
    external_data_over: ExternalData = _EXTERNAL,
    as_json: AsJson = False,
) -> None:
    """Export a composer (reference and condition to one query) into a family that is there."""
    with _refusals():
        frames = _frames(template)
        target = _target(out, family, precision, version, overwrite, max_batch, None, pictures, external_data_over)
        module = combiner(weights) if factory is None else make_module(factory, weights=weights)
        with _working(f"exporting {weights.name}"):
            models = publish_composer(module, target, templates=frames)
        _report(models, out, {}, as_json=as_json)


@app.command("module")
def module(
    factory: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:NAME", help="What makes the torch.nn.Module.")],
    *,
    signature: Annotated[
        str, typer.Option(metavar="TEXT", help="'pixels: float32[b, 3, 224, 224] -> features: float32[b, 512]'")
    ],
    family: Annotated[str, typer.Option(help="Its family; text encoders and composers join one that is there.")],
    weights: Annotated[Path | None, typer.Option(help="A state dict to load into it.")] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="An image encoder's: size, resize, crop, interpolation, mean, std."),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A text encoder's tokenizer.json.")] = None,
    pad_id: Annotated[int, typer.Option(min=0, help="Id that fills up short texts.")] = 0,
    text_template: TextTemplate = "{}",
    truncate: Truncate = "end",
    template: Templates = None,
    out: Out = _REPOSITORY,
    precision: Precision = "fp32",
    version: Version = None,
    overwrite: Overwrite = False,
    max_batch: MaxBatch = 32,
    compatible_with: Compatible = None,
    pictures: Pictures = None,
    external_data_over: ExternalData = _EXTERNAL,
    as_json: AsJson = False,
) -> None:
    """Export any torch module: an image encoder, a text encoder or a composer, as its signature says."""
    with _refusals():
        read = parse_signature(signature)
        fields, frames = _fields(preprocess), _frames(template)
        target = _target(
            out, family, precision, version, overwrite, max_batch, compatible_with, pictures, external_data_over
        )
        made = make_module(factory, weights=weights)
        with _working(f"exporting {factory}"):
            models = publish_module(
                made,
                read,
                target,
                preprocess=fields,
                tokenizer=tokenizer,
                pad_id=pad_id,
                template=text_template,
                truncate=truncate,
                condition_templates=frames,
            )
        _report(models, out, {}, as_json=as_json)


def _export_source(load: Callable[[], Source], target: Target, fields: Mapping[str, Any], *, as_json: bool) -> None:
    with _working("loading"):
        source = load()
    with _working(f"exporting {source.name}"):
        models = publish_source(source, target, preprocess=fields)
    _report(models, target.repository, source.facts, as_json=as_json)


def _target(
    out: Path,
    family: str | None,
    precision: str,
    version: int | None,
    overwrite: bool,
    max_batch: int,
    compatible_with: list[str] | None,
    pictures: Path | None,
    external_data_over: int,
) -> Target:
    return Target(
        out,
        family=family,
        version=version,
        overwrite=overwrite,
        precision=precision,
        max_batch=max_batch,
        compatible_with=_spaces(compatible_with),
        external_data_over=external_data_over,
        pictures=pictures,
    )


def _spaces(given: list[str] | None) -> dict[str, int]:
    spaces = {}
    for text in given or ():
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise SourceError(f"--compatible-with takes DIGEST:DIMS (sha256:3fa…:512), got {text!r}")
        spaces[match[1]] = int(match[2])
    return spaces


def _fields(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"--preprocess is no JSON ({error}): {text!r}") from error
    if not isinstance(fields, dict):
        raise SourceError(f"--preprocess takes a JSON object, got {text!r}")
    return fields


def _frames(given: list[str] | None) -> dict[str, str]:
    frames = {}
    for text in given or ():
        mode, equals, frame = text.partition("=")
        if not equals:
            raise SourceError(f"--template takes MODE=TEXT ('focus=same {{}}'), got {text!r}")
        frames[mode] = frame
    return frames


@contextlib.contextmanager
def _refusals() -> Any:
    try:
        yield
    except _REFUSALS as error:
        sys.stderr.write(f"likewise export: {' '.join(str(error).split())}\n")
        raise typer.Exit(1) from error


@contextlib.contextmanager
def _working(what: str) -> Any:
    # The libraries print as they like; what this command prints on stdout is its result alone.
    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status(what):
        yield


def _report(models: tuple[Model, ...], repository: Path, facts: Mapping[str, str], *, as_json: bool) -> None:
    rows = [_row(model) for model in models]
    family = models[0].manifest.family
    if as_json:
        print_json({"repository": str(repository), "family": family, "facts": facts, "models": rows})
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")
    columns = ("model", "version", "kind", "precision", "dim", "MB", "cosine", "top-10 overlap")
    print_table(
        columns,
        [
            (
                row["name"],
                row["version"],
                row["kind"],
                row["precision"],
                row["dim"],
                round(row["bytes"] / 1e6, 1),
                f"{row['parity']['lowest_cosine']:.7f}",
                f"{row['parity']['top_10_overlap']:.4f}",
            )
            for row in rows
        ],
    )
    typer.echo(f"space {models[0].manifest.space}\nserve it: likewise serve --models {repository}")


def _row(model: Model) -> dict[str, Any]:
    of = model.manifest
    return {
        "name": of.name,
        "version": of.version,
        "kind": of.kind,
        "precision": of.precision,
        "dim": of.dim,
        "space": of.space,
        "folder": str(model.folder),
        "files": dict(of.files),
        "bytes": sum(model.file(name).stat().st_size for name in of.files),
        "parity": dict(of.evaluation["parity"]),
    }
