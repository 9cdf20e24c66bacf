"""`likewise serve`: the server in the foreground, until SIGTERM or Ctrl-C."""

import os

# OpenMP reads this when FAISS loads it below. Threads that spin after each search take the cores from the event loop:
# on two cores, 32 callers get twice the answers with PASSIVE that they get with ACTIVE (docs/where-the-time-goes.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as _numpy  # noqa: F401  # with the BLAS that is told below
from threadpoolctl import threadpool_limits

# Scans share their rows among threads themselves (likewise.shards.scan_threads), and a thread of BLAS spins for a while
# after each product. A variable of the environment would come too late: the command has loaded numpy, which the SDK
# needs, before this. FAISS, which brings a BLAS of its own for building indexes, is loaded after it, and reads what the
# operator has set.
if "OPENBLAS_NUM_THREADS" not in os.environ:  # OMP_NUM_THREADS is meant for FAISS
    threadpool_limits(limits=1, user_api="blas")

import asyncio
import sys
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError

from likewise.server import access_log
from likewise.server.app import StartupError, serve
from likewise.server.cluster.run_router import router
from likewise.server.embedded import embedded
from likewise.server.errors import ServiceError
from likewise.server.settings import PREFIX, Settings, unknown_variables
from likewise.shards.memory import bound_allocator
from likewise.shards.protocols import ShardError
from likewise.shards.spec import SpecError

CANNOT_START: Final = 1
WRONG_OPTIONS: Final = 2


class Role(StrEnum):
    """What the process does."""

    ALL = "all"
    ROUTER = "router"


app = typer.Typer(help="Run a server.", add_completion=False)


def _help(field: str) -> str:
    return f"{Settings.model_fields[field].description} ({PREFIX}{field.upper()})"


@app.callback(invoke_without_command=True)
def run(
    *,
    store: Annotated[str | None, typer.Option(help=_help("store"))] = None,
    host: Annotated[str | None, typer.Option(help=_help("host"))] = None,
    port: Annotated[int | None, typer.Option(help=_help("port"))] = None,
    share_port: Annotated[
        bool, typer.Option("--share-port", help=_help("share_port") + " With --role router.")
    ] = False,
    socket: Annotated[Path | None, typer.Option(help=_help("socket"))] = None,
    metrics_port: Annotated[int | None, typer.Option(help=_help("metrics_port"))] = None,
    models: Annotated[list[Path] | None, typer.Option(help=_help("models") + " May be repeated.")] = None,
    cache: Annotated[Path | None, typer.Option(help=_help("cache"))] = None,
    export_root: Annotated[Path | None, typer.Option(help=_help("export_root"))] = None,
    threads: Annotated[int | None, typer.Option(help=_help("threads"))] = None,
    drain_grace_s: Annotated[float | None, typer.Option(help=_help("drain_grace_s"))] = None,
    log_format: Annotated[str | None, typer.Option(help=_help("log_format"))] = None,
    log_level: Annotated[str | None, typer.Option(help=_help("log_level"))] = None,
    ray: Annotated[
        str | None, typer.Option(help='Place models, shards and writers on a Ray cluster: its address, or "local".')
    ] = None,
    controller_port: Annotated[int | None, typer.Option(help=_help("controller_port"))] = None,
    role: Annotated[
        Role, typer.Option(help="all: serve the store. router: only route calls, to the cluster of --controller.")
    ] = Role.ALL,
    controller: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The cluster's controller, with --role router.")
    ] = None,
) -> None:
    """Run a server until SIGTERM or Ctrl-C. Every knob has a LIKEWISE_* variable; an option here beats it."""
    given = {
        "store": store,
        "host": host,
        "port": port,
        "share_port": share_port or None,
        "socket": socket,
        "metrics_port": metrics_port,
        "models": tuple(models) if models else None,
        "cache": cache,
        "export_root": export_root,
        "threads": threads,
        "drain_grace_s": drain_grace_s,
        "log_format": log_format,
        "log_level": log_level.upper() if log_level else None,
        "controller_port": controller_port,
    }
    _check_role(role, controller=controller, ray=ray)
    settings = _settings({name: value for name, value in given.items() if value is not None})
    if settings.share_port and role is not Role.ROUTER:  # asked for by the variable too
        _fail("--share-port needs --role router: a store is served by one process", WRONG_OPTIONS)
    bound_allocator()
    access_log.configure(format=settings.log_format, level=settings.log_level)
    for name in unknown_variables(os.environ):
        _say(f"the variable {name} is unknown and has no effect")
    try:
        if controller is not None:
            _run(_serve_router(settings, controller))
        elif ray is not None:
            _serve_on_ray(settings, ray)
        else:
            _run(_serve_embedded(settings))
    except (StartupError, ShardError, ServiceError, SpecError, OSError) as error:
        _fail(f"cannot start: {error}", CANNOT_START)


async def _serve_embedded(settings: Settings) -> None:
    # Made inside the loop that will run it.
    await serve(embedded(settings), note=f", store {settings.store}")


async def _serve_router(settings: Settings, controller: str) -> None:
    await serve(router(settings, controller), note=f", controller {controller}")


def _check_role(role: Role, *, controller: str | None, ray: str | None) -> None:
    if (role is Role.ROUTER) != (controller is not None):
        missing = (
            "--role router needs --controller HOST:PORT" if controller is None else "--controller needs --role router"
        )
        _fail(missing, WRONG_OPTIONS)
    if controller is not None and ray is not None:
        _fail("--ray starts or joins a cluster, --role router only follows its controller: give one", WRONG_OPTIONS)
    if controller is not None and not controller.rpartition(":")[2].isdecimal():
        _fail(f"--controller must be HOST:PORT, got {controller!r}", WRONG_OPTIONS)


def _serve_on_ray(settings: Settings, address: str) -> None:
    try:
        from likewise.server.cluster.run import run as run_cluster
    except ImportError as error:
        _fail(f"--ray needs the extra `cluster` (pip install 'likewise[cpu,cluster]'): {error}", CANNOT_START)
    run_cluster(settings, address)


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"][:1])
            _say(f"{name}: {problem['msg']}, got {problem['input']!r}")
        raise typer.Exit(WRONG_OPTIONS) from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _say(text: str) -> None:
    print(f"likewise: {text}", file=sys.stderr, flush=True)


def _fail(text: str, code: int) -> NoReturn:
    _say(text)
    raise typer.Exit(code)


def main() -> None:
    """`python -m likewise.cli.serve`."""
    app()


if __name__ == "__main__":
    main()
