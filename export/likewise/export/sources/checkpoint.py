"""Weights from files, and what is said when they do not fit the module they are meant for."""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

_SHOWN: Final = 4
_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

_STRICT: Final = re.compile(r"(Missing|Unexpected) key\(s\) in state_dict: (.*?)\.\s*(?:\n|$)", re.DOTALL)
_SHAPE: Final = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((\[[^]]*\]).*?torch\.Size\((\[[^]]*\])")


class SourceError(ValueError):
    """A model cannot be exported from what was given; the message says what to give instead."""


class CheckpointError(SourceError):
    """A file of weights cannot be read or does not fit the module."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights by name, without the prefixes that training wrappers add.

    Reads .safetensors files and what torch.save wrote, tensors only: no code of the file is run. A state dict may lie
    under one key of a larger checkpoint ("state_dict", "model", the class's name).

    Raises:
        CheckpointError: There is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return without_prefixes(load_file(str(path)))
        except Exception as error:
            # SafetensorError and whatever a damaged header leads to.
            raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path}: a TorchScript archive (OpenAI's CLIP files are), not a state dict; save one from it with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # UnpicklingError, RuntimeError, EOFError, KeyError: as the file is broken.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as weights alone ({reason}); save model.state_dict(), not the model"
        ) from error
    return without_prefixes(_find_state(content, path))


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with "module." and "_orig_mod." taken off, where every name has them."""
    names = dict(state)
    while names and (prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in names)), None)):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights that must fit the module exactly.

    Args:
        module: Changed.
        state: Weights by name.
        origin: Where they are from, for the error.

    Raises:
        CheckpointError: With the number and the first names of what is missing, unexpected, or of another shape.
    """
    wanted = module.state_dict()
    shapes = [
        f"{name}: {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    problem = mismatch(
        [n for n in wanted if n not in state], [n for n in state if n not in wanted], shapes, len(wanted)
    )
    if problem:
        raise CheckpointError(f"{origin} does not fit {type(module).__name__}: {problem}")
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in state.items()})


def mismatch(
    missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str] = (), total: int | None = None
) -> str:
    """What does not fit, for people; empty if all does.

    Args:
        missing: Names that the module has and the file has not.
        unexpected: Names that only the file has.
        shapes: "name: shape, expected shape" of those that differ.
        total: How many weights the module has.
    """
    of = f" of {total}" if total is not None else ""
    parts = []
    if missing:
        parts.append(f"{len(missing)}{of} weights are missing ({shown(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are unexpected ({shown(unexpected)})")
    if shapes:
        parts.append(f"{len(shapes)} have another shape ({shown(shapes)})")
    return ", ".join(parts)


def mismatch_in(message: str) -> str:
    """The same from the message of torch's strict ``load_state_dict``; empty if it is another message."""
    found: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    for kind, names in _STRICT.findall(message):
        found[kind] = re.findall(r'"([^"]+)"', names)
    shapes = [f"{name}: {got}, expected {want}" for name, got, want in _SHAPE.findall(message)]
    return mismatch(found["Missing"], found["Unexpected"], shapes)


def shown(names: Iterable[str]) -> str:
    """The first few of them."""
    taken = list(names)
    more = f", and {len(taken) - _SHOWN} more" if len(taken) > _SHOWN else ""
    return ", ".join(taken[:_SHOWN]) + more


def _find_state(content: Any, path: Path) -> Mapping[str, Tensor]:
    if _is_state(content):
        return content  # type: ignore[no-any-return]
    inner = [(name, value) for name, value in content.items() if _is_state(value)] if isinstance(content, dict) else []
    if len(inner) == 1:
        return inner[0][1]  # type: ignore[no-any-return]
    if inner:
        named = dict(inner)
        for name in ("state_dict", "model"):
            if name in named:
                return named[name]  # type: ignore[no-any-return]
        raise CheckpointError(
            f"{path}: holds several state dicts ({shown(named)}); save the one that is meant by itself"
        )
    raise CheckpointError(f"{path}: holds a {type(content).__name__} and no weights by name")


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
