"""`likewise doctor`: what of this machine a server could stumble over, checked before it does."""

import importlib
import json
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from likewise.export.manifest import ManifestError
from likewise.export.model_repository import load_repository
from likewise.server.settings import Settings, unknown_variables
from likewise.shards.lock import StoreLock, StoreLocked
from likewise.shards.store import local_folder

BROKEN: Final = 1

MIN_OPEN_FILES: Final = 4096
"""A gallery keeps some hundred store files open while it compacts; clients take one each."""

Status = Literal["ok", "warning", "broken"]
_STYLES: Final[dict[Status, str]] = {"ok": "green", "warning": "yellow", "broken": "bold red"}

# Module, distribution or distributions (the first that is installed), whether a server needs it.
_LIBRARIES: Final = (
    ("grpc", ("grpcio",), True),
    ("google.protobuf", ("protobuf",), True),
    ("numpy", ("numpy",), True),
    ("pyarrow", ("pyarrow",), True),
    ("lance", ("pylance",), True),
    ("faiss", ("faiss-cpu", "faiss-gpu-cuvs"), True),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), True),
    ("PIL", ("Pillow",), True),
    ("tokenizers", ("tokenizers",), True),
    ("uvloop", ("uvloop",), False),
    ("ray", ("ray",), False),
    ("torch", ("torch",), False),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    status: Status
    detail: str


app = typer.Typer(help="Check this machine.", add_completion=False)


@app.callback(invoke_without_command=True)
def run(
    *,
    store: Annotated[str | None, typer.Option(help="The store the server will use.")] = None,
    host: Annotated[str | None, typer.Option(help="The address it will listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port it will listen on.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="A model repository; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of findings as JSON.")] = False,
) -> None:
    """Check Python, libraries, store, port, models and limits. Exit code 1 if something is broken."""
    given = {"store": store, "host": host, "port": port, "models": tuple(models) if models else None}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        findings = [Finding("settings", "broken", str(problem["msg"])) for problem in error.errors()]
    else:
        findings = list(examine(settings))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(BROKEN)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in the order of the table; one that fails unexpectedly is broken, the others still run."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", check_python),
        ("libraries", check_libraries),
        ("faiss", check_faiss),
        ("onnxruntime", check_onnxruntime),
        ("store", lambda: check_store(settings.store)),
        ("port", lambda: check_port(settings.host, settings.port)),
        ("models", lambda: check_models(settings.models)),
        ("open files", check_open_files),
        ("environment", lambda: check_environment(os.environ)),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, "broken", f"{type(error).__name__}: {error}")


def check_python() -> Iterator[Finding]:
    """The interpreter and the processors."""
    enough = sys.version_info >= (3, 11)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{platform.python_version()} on {platform.platform()}, {cpus} processors"
    yield Finding("python", "ok" if enough else "broken", detail if enough else f"{detail}; 3.11 or newer is needed")


def check_libraries() -> Iterator[Finding]:
    """Versions, and whether those that a server needs can be imported."""
    for module, distributions, needed in _LIBRARIES:
        installed = _version(distributions)
        name = distributions[0]
        if not needed:
            # Importing ray and torch takes seconds and proves little: what uses them says so when it cannot.
            yield Finding(name, "ok", installed or "not installed, optional")
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            why = "not installed" if installed is None else f"{installed} cannot be imported: {error}"
            yield Finding(name, "broken", why)
        else:
            yield Finding(name, "ok", installed or "version unknown")


def check_faiss() -> Iterator[Finding]:
    """The instruction set that FAISS was loaded for, and its GPUs."""
    # By name: this only asks what is installed, and must live when it is not.
    faiss: Any = _module("faiss")
    if faiss is None:
        return
    options = str(faiss.get_compile_options()).strip()
    fast = any(word in options for word in ("AVX", "NEON", "SVE"))
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield Finding("faiss build", "ok" if fast else "warning", f"{options}; {gpus} GPUs")


def check_onnxruntime() -> Iterator[Finding]:
    """The execution providers of ONNX Runtime."""
    onnxruntime: Any = _module("onnxruntime")
    if onnxruntime is not None:
        yield Finding("onnxruntime providers", "ok", ", ".join(onnxruntime.get_available_providers()))


def check_store(uri: str) -> Iterator[Finding]:
    """Whether a local store can be written and is free; nothing but its lock file is made."""
    folder = local_folder(uri)
    if folder is None:
        yield Finding("store", "ok", f"{uri} is no local folder, not checked")
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Finding("store", "broken", f"{existing} cannot be written: {error.strerror}")
        return
    if existing != folder:
        yield Finding("store", "ok", f"{folder} will be made")
        return
    lock = StoreLock(folder)
    try:
        lock.acquire()
    except StoreLocked as error:
        yield Finding("store", "warning", str(error))
    else:
        lock.release()
        yield Finding("store", "ok", f"{folder} can be written")


def check_port(host: str, port: int) -> Iterator[Finding]:
    """Whether the address can be listened on."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        yield Finding("port", "broken", f"{host}:{port}: {error.strerror or error}")
    else:
        yield Finding("port", "ok", f"{host}:{port} is free")


def check_models(folders: tuple[Path, ...]) -> Iterator[Finding]:
    """Every model repository, the built-in one first, against its checksums."""
    for folder in (None, *folders):
        name = "models" if folder is None else f"models in {folder}"
        try:
            repository = load_repository(folder, verify=True)
        except ManifestError as error:
            yield Finding(name, "broken", str(error))
        else:
            families = ", ".join(sorted(repository.families())) or "no families"
            yield Finding(name, "ok", f"{len(repository.models)} models ({families}), checksums agree")


def check_open_files() -> Iterator[Finding]:
    """The limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{'unlimited' if soft == resource.RLIM_INFINITY else soft}"
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        yield Finding("open files", "warning", f"{detail}, at least {MIN_OPEN_FILES} are advised: ulimit -n {hard}")
    else:
        yield Finding("open files", "ok", detail)


def check_environment(names: Iterable[str]) -> Iterator[Finding]:
    """LIKEWISE_* variables that mean nothing."""
    for name in unknown_variables(names):
        yield Finding("environment", "warning", f"{name} is unknown and has no effect")


def _version(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _print(findings: list[Finding]) -> None:
    table = Table("check", "status", "detail")
    for finding in findings:
        table.add_row(finding.check, f"[{_STYLES[finding.status]}]{finding.status}[/]", finding.detail)
    Console().print(table)


if __name__ == "__main__":
    app()
