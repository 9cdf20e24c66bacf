"""Commands by name, those of other packages imported only when they are called."""

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from likewise.client.errors import LikewiseError, ServerError

ENTRY_POINTS: Final = "likewise.commands"
"""Entry point group; each value is a typer.Typer."""

# What --help says of a command without importing it.
_SUMMARIES: Final[Mapping[str, str]] = {
    "serve": "Start a server.",
    "demo": "See conditional search work on 5,000 pictures made on the spot.",
    "doctor": "Check what this machine can run.",
    "eval": "Measure a model.",
    "train": "Train a model.",
    "bench": "Measure speed and recall.",
    "export": "Export models to ONNX.",
}

_SERVER: Final = "cpu"  # or gpu, which installs the same import names
_EXTRAS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("faiss", "lance", "onnxruntime", "pyarrow", "PIL", "tokenizers", "prometheus_client"), _SERVER),
    **dict.fromkeys(("pydantic", "pydantic_settings", "grpc_health", "grpc_reflection", "uvloop", "rich"), _SERVER),
    "ray": "cluster",
    **dict.fromkeys(("torch", "onnx", "onnxscript", "open_clip", "transformers"), "export"),
}


class CommandGroup(TyperGroup):
    """The root of the command line: its own commands, then those of the entry points.

    Errors that are meant for the caller end the program with status 1 and one line, never a traceback.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, imported or not."""
        own = super().list_commands(ctx)
        return own + sorted(name for name in _plugins() if name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; one of an entry point as a stand-in that imports nothing yet."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        entry_point = _plugins().get(cmd_name)
        return None if entry_point is None else LazyCommand(cmd_name, entry_point)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except LikewiseError as error:
            _fail(f"{error}{_hint(error)}")
        except ModuleNotFoundError as missing:
            module = (missing.name or "").partition(".")[0]
            if module not in _EXTRAS:
                raise
            extra = _EXTRAS[module]
            choice = "likewise[cpu]' or 'likewise[gpu]" if extra == _SERVER else f"likewise[{extra}]"
            _fail(f"this needs {module}, which is not installed: pip install '{choice}'")


class LazyCommand(TyperCommand):
    """Stands in for a command of another package until it is called."""

    def __init__(self, name: str, entry_point: EntryPoint) -> None:
        summary = _SUMMARIES.get(name, f"See likewise {name} --help.")
        super().__init__(name, callback=None, help=summary, short_help=summary, add_help_option=False)
        self._entry_point = entry_point

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the real command and hand over to it."""
        loaded = self._entry_point.load()
        if not isinstance(loaded, typer.Typer):
            raise typer.BadParameter(f"{self._entry_point.value} is no typer.Typer")
        return get_command(loaded).make_context(info_name, args, parent=parent, **extra)


def _plugins() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINTS)}


def _hint(error: LikewiseError) -> str:
    if error.retry_after_s is not None:
        return f" (try again in {error.retry_after_s:g} s)"
    return f" (request {error.request_id})" if isinstance(error, ServerError) and error.request_id else ""


def _fail(message: str) -> None:
    sys.stderr.write(f"likewise: {' '.join(message.split())}\n")
    raise typer.Exit(1)
