"""Repositories of exported models, in Triton's layout: found, read and verified; standard library only.

A repository is a folder of ``<name>/<version>/manifest.json`` with the files that the manifest names beside
it. Reading one checks every file's SHA-256, so a damaged or half-copied model is refused before it is served.
"""

from dataclasses import dataclass
from pathlib import Path

from likewise.export.manifest import MANIFEST, MODEL_FILE, Manifest, ManifestError, file_sha256, read_manifest


@dataclass(frozen=True, slots=True)
class Model:
    """A manifest and the folder that its files lie in."""

    manifest: Manifest
    folder: Path

    def file(self, name: str = MODEL_FILE) -> Path:
        """Path of one of the model's files.

        Raises:
            ManifestError: The manifest names no such file.
        """
        if name not in self.manifest.files:
            raise ManifestError(
                f"model {self.manifest.name!r} has no file {name!r}, only {sorted(self.manifest.files)}"
            )
        return self.folder / name


@dataclass(frozen=True, slots=True)
class Family:
    """An image encoder with the text encoder and the composer that share its space."""

    name: str
    image_encoder: Model
    text_encoder: Model | None
    composer: Model | None


@dataclass(frozen=True, slots=True)
class Repository:
    """All models of a repository folder, every version, sorted by (name, version)."""

    path: Path
    models: tuple[Model, ...]

    def names(self) -> tuple[str, ...]:
        """Names of its models, sorted."""
        return tuple(sorted({model.manifest.name for model in self.models}))

    def latest(self, name: str) -> Model:
        """The highest version of a model.

        Raises:
            ManifestError: There is no model of that name.
        """
        found = [model for model in self.models if model.manifest.name == name]
        if not found:
            raise ManifestError(f"no model {name!r} in {self.path}, only {list(self.names())}")
        return max(found, key=lambda model: model.manifest.version)

    def families(self) -> tuple[str, ...]:
        """Names of its families, sorted."""
        return tuple(sorted({model.manifest.family for model in self.models}))

    def family(self, name: str) -> Family:
        """The latest versions of a family's models, checked to share one space.

        Raises:
            ManifestError: There is no such family, it has no image encoder, or its models disagree on the
                space.
        """
        members: dict[str, Model] = {}
        for model in self.models:
            if model.manifest.family != name:
                continue
            other = members.get(model.manifest.kind)
            if other is not None and other.manifest.name != model.manifest.name:
                raise ManifestError(
                    f"family {name!r} has two models of kind {model.manifest.kind}: "
                    f"{other.manifest.name!r} and {model.manifest.name!r}"
                )
            members[model.manifest.kind] = self.latest(model.manifest.name)
        image = members.get("image_encoder")
        if image is None:
            known = f", only families {list(self.families())}" if not members else " with an image encoder"
            raise ManifestError(f"no family {name!r} in {self.path}{known}")
        for model in members.values():
            if model.manifest.space != image.manifest.space:
                raise ManifestError(
                    f"family {name!r}: {model.manifest.name!r} is of space {model.manifest.space}, "
                    f"{image.manifest.name!r} of {image.manifest.space}"
                )
        return Family(name, image, members.get("text_encoder"), members.get("composer"))


def builtin_repository() -> Path:
    """The folder of the model repository that comes with the package."""
    return Path(__file__).resolve().parent / "builtin"


def load_repository(path: Path | None = None, *, verify: bool = True) -> Repository:
    """Read every manifest of a repository (the built-in one by default).

    Args:
        path: The repository's folder.
        verify: Check the SHA-256 of every file.

    Raises:
        ManifestError: The folder does not exist, holds no model, or a model is damaged.
    """
    path = builtin_repository() if path is None else path
    if not path.is_dir():
        raise ManifestError(f"no model repository at {path}")
    models = []
    for file in sorted(path.glob(f"*/*/{MANIFEST}")):
        manifest = read_manifest(file)
        model = Model(manifest, file.parent)
        expected = (manifest.name, str(manifest.version))
        if (file.parent.parent.name, file.parent.name) != expected:
            raise ManifestError(f"{file}: names model {'/'.join(expected)}, which is not the folder it lies in")
        if verify:
            verify_files(model)
        models.append(model)
    if not models:
        raise ManifestError(f"no model in {path}: expected <name>/<version>/{MANIFEST}")
    models.sort(key=lambda model: (model.manifest.name, model.manifest.version))
    return Repository(path, tuple(models))


def verify_files(model: Model) -> None:
    """Check that every file of a model is there and is the one that the manifest was written for.

    Raises:
        ManifestError: A file is missing or its SHA-256 differs.
    """
    for name, expected in model.manifest.files.items():
        path = model.folder / name
        if not path.is_file():
            raise ManifestError(f"{path} is missing; {MANIFEST} of {model.manifest.name!r} names it")
        actual = file_sha256(path)
        if actual != expected:
            raise ManifestError(f"{path} has SHA-256 {actual}, its manifest says {expected}: damaged or replaced")
