"""Model repositories as they lie on disk: read whole at the start, and one version at a time when it is asked for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from likewise.export.manifest import MANIFEST, ManifestError, read_manifest
from likewise.export.model_repository import Model, Repository, builtin_repository, load_repository
from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.validate import shown

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")


class ModelsError(Exception):
    """Repositories that cannot be served together, or one that cannot be read."""


def read_repositories(folders: Sequence[Path], *, builtin: bool = True) -> tuple[Repository, ...]:
    """The manifests of the built-in repository and of further folders; their files are not read yet. Blocks.

    Raises:
        ModelsError: If a folder is no model repository.
    """
    paths = [*([builtin_repository()] if builtin else []), *folders]
    try:
        return tuple(load_repository(path, verify=False) for path in paths)
    except ManifestError as error:
        raise ModelsError(str(error)) from error


def refuse_twins(repositories: Sequence[Repository]) -> None:
    """Raise `ModelsError` if two repositories hold a model or a family of the same name."""
    for what, names in (("model", Repository.names), ("family", Repository.families)):
        seen: dict[str, Path] = {}
        for one in repositories:
            for name in names(one):
                if name in seen:
                    raise ModelsError(f"{what} {name!r} is in two repositories: {seen[name]} and {one.path}")
                seen[name] = one.path


def find_version(folders: Sequence[Path], name: str, version: int | None) -> Model:
    """One version as it lies in the repositories now, whether or not it was there at the start. Blocks.

    Args:
        folders: The repositories.
        name: Of the model.
        version: None for the highest there is.

    Raises:
        NotFound: If no repository has it; a version counts as there when its manifest does.
        FailedPrecondition: MODEL_FAILED if its manifest cannot be read, or two repositories have it.
    """
    found = [folder for folder in folders if _versions(folder, name)]
    if not found:
        known = sorted({path.name for folder in folders for path in folder.iterdir() if _versions(folder, path.name)})
        raise NotFound(
            f"no model {shown(name)} in the model repositories, there are {known}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name[:256]},
        )
    if len(found) > 1:
        raise _failed(f"{name}: two model repositories have it; remove one", name)
    versions = _versions(found[0], name)
    wanted = max(versions) if version is None else version
    if wanted not in versions:
        raise NotFound(
            f"model {name!r} has no version {wanted} in the model repository, only {sorted(versions)}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name, "version": str(wanted)},
        )
    folder = found[0] / name / str(wanted)
    try:
        manifest = read_manifest(folder / MANIFEST)
    except ManifestError as error:
        raise _failed(f"{name}/{wanted} cannot be served: {_without(folder, error)}", f"{name}/{wanted}") from error
    if (manifest.name, manifest.version) != (name, wanted):
        raise _failed(
            f"{name}/{wanted} cannot be served: its manifest is that of {manifest.name}/{manifest.version}",
            f"{name}/{wanted}",
        )
    return Model(manifest, folder)


def _versions(folder: Path, name: str) -> set[int]:
    # The name comes from a caller: it must not lead out of the repository.
    if name in ("", "..") or name != Path(name).name or len(name) > 128 or "\0" in name:
        return set()
    numbers = (path.parent.name for path in (folder / name).glob(f"*/{MANIFEST}"))
    return {int(number) for number in numbers if _NUMBER.fullmatch(number)}


def _without(folder: Path, error: ManifestError) -> str:
    """The error without the machine's paths: it is shown to callers."""
    return str(error).replace(f"{folder}/", "")


def _failed(text: str, model: str) -> FailedPrecondition:
    return FailedPrecondition(f"the model {text}", reason="MODEL_FAILED", metadata={"model": model})
