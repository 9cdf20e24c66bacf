"""`likewise cluster`: look at a cluster through its controller."""

from typing import Annotated, Final, NoReturn

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from likewise.client.cli.options import AsJson
from likewise.client.cli.output import print_json, print_table
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc

UNREACHABLE: Final = 1
WRONG_OPTIONS: Final = 2

app = typer.Typer(no_args_is_help=True, help="Look at a cluster.", add_completion=False)

_COLUMNS: Final = ("part", "address", "state", "version", "behind", "message")


@app.callback()
def _group() -> None:
    """Look at a cluster."""  # a callback: without one, a single command would lose its name


@app.command()
def status(
    controller: Annotated[
        str,
        typer.Option(
            envvar="LIKEWISE_CONTROLLER", metavar="HOST:PORT", help="The controller, as `likewise serve --ray` logs it."
        ),
    ],
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds it may take.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Every process of a cluster: where it is, what it is doing, and how far it is behind."""
    if not controller.rpartition(":")[2].isdecimal():
        _fail(f"--controller must be HOST:PORT, got {controller!r}", WRONG_OPTIONS)
    found = _asked(controller, timeout)
    if as_json:
        print_json(MessageToDict(found, always_print_fields_with_no_presence=True, preserving_proto_field_name=True))
        return
    for one in found.galleries:
        spec = one.gallery.spec
        typer.echo(f"gallery {spec.name}: {spec.shards} shards x {spec.replicas}, version {one.gallery.version:,}")
        replicas = [
            (f"shard {shard.shard} replica {number}", part)
            for shard in one.shards
            for number, part in enumerate(shard.replicas)
        ]
        print_table(_COLUMNS, [_row("writer", one.writer), *(_row(name, part) for name, part in replicas)])
    if found.encoders:
        typer.echo("encoders")
        rows = [
            (
                f"{one.family} replica {one.replica}",
                one.part.address or None,
                _word(one.part.state),
                ", ".join(f"{model.name}/{model.version}" for model in one.models) or None,
                one.part.message or None,
            )
            for one in found.encoders
        ]
        print_table(("part", "address", "state", "models", "message"), rows)
    typer.echo(f"routers: {', '.join(found.routers) or 'none'}")


def _asked(controller: str, timeout: float) -> pb.StatusResponse:
    with grpc.insecure_channel(controller, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return pb_grpc.ControllerServiceStub(channel).Status(pb.StatusRequest(), timeout=timeout)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                _fail(
                    f"{controller} is no controller: it may be a router's own address, or an older release", UNREACHABLE
                )
            _fail(f"no controller answers at {controller}: {code.name}: {error.details()}", UNREACHABLE)


def _row(name: str, part: pb.PartStatus) -> tuple[object, ...]:
    serving = part.state == pb.PART_STATE_SERVING
    return (
        name,
        part.address or None,
        _word(part.state),
        part.version if serving else None,
        part.lag if serving else None,
        part.message or None,
    )


def _word(state: "pb.PartState.ValueType") -> str:
    return pb.PartState.Name(state).removeprefix("PART_STATE_").lower()


def _fail(text: str, code: int) -> NoReturn:
    typer.echo(f"likewise: {text}", err=True)
    raise typer.Exit(code)
