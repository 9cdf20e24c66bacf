"""`likewise model`: look at the server's models."""

from typing import Annotated

import typer

from likewise.client.cli.options import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Address, AsJson, Timeout, connect
from likewise.client.cli.output import print_facts, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Look at the server's models.")


@app.command("list")
def list_models(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False
) -> None:
    """All model versions."""
    with connect(address, timeout) as client:
        models = client.models()
    if as_json:
        print_json(models)
    else:
        rows = [(one.name, one.version, one.kind, one.family, one.dim, one.state, one.provider) for one in models]
        print_table(("name", "version", "kind", "family", "dim", "state", "provider"), rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    version: Annotated[int | None, typer.Option(min=1, help="Default: the one in use, else the newest.")] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """One model version."""
    with connect(address, timeout) as client:
        model = client.model(name, version)
    if as_json:
        print_json(model)
    else:
        print_facts({field: getattr(model, field) for field in model.__slots__})
