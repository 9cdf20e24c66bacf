"""`likewise model`: the server's models, and which of their versions are in use."""

from typing import Annotated, Any

import typer

from likewise.client.cli.options import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Address, AsJson, Timeout, connect
from likewise.client.cli.output import print_facts, print_json, print_table
from likewise.client.models import Model, Promotion

app = typer.Typer(no_args_is_help=True, help="See the server's models, and change which versions are in use.")

_COLUMNS = ("name", "version", "kind", "family", "dim", "state", "use", "provider")

One = Annotated[str, typer.Argument(metavar="MODEL/VERSION", help="As in clip-text/2.")]


@app.command("list")
def list_models(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False
) -> None:
    """All model versions. USE says which answer now, and which a rollback goes back to."""
    with connect(address, timeout) as client:
        models = client.models()
    if as_json:
        print_json(models)
    else:
        print_table(_COLUMNS, [_row(one) for one in models])
        for one in models:
            if one.reason:
                typer.echo(f"{one.name}/{one.version}: {one.reason}")


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


@app.command()
def load(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[/VERSION]...", help="Without a version: the newest in the repository."),
    ],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Open versions beside those in use; answers do not change."""
    wanted = [_named(one) if "/" in one else (one, None) for one in models]
    with connect(address, timeout) as client:
        loaded = [client.load_model(name, version) for name, version in wanted]
    if as_json:
        print_json(loaded)
    else:
        print_table(_COLUMNS, [_row(one) for one in loaded])


@app.command()
def promote(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL/VERSION...", help="Several of one family change at the same moment."),
    ],
    min_overlap: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Refuse unless this share of the top 10 of live queries stays."),
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Do not compare. The space is checked all the same.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Make loaded versions the ones in use, all at one moment."""
    (name, version), *others = [_named(one) for one in models]
    together = dict(others)
    if len(together | {name: version}) < len(models):
        raise typer.BadParameter("a model comes twice", param_hint="MODEL/VERSION...")
    with connect(address, timeout) as client:
        promotion = client.promote_model(name, version, together=together, min_overlap=min_overlap, force=force)
    _print_promotion(promotion, as_json=as_json, compared=not force)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Any model of the family; all go back together.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Go back to the versions in use before the last promotion."""
    with connect(address, timeout) as client:
        promotion = client.rollback_model(name)
    _print_promotion(promotion, as_json=as_json, compared=False)


@app.command()
def unload(
    model: One,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Free a version that is not in use, once the last query that uses it has ended."""
    name, version = _named(model)
    with connect(address, timeout) as client:
        client.unload_model(name, version)
    if as_json:
        print_json({"unloaded": f"{name}/{version}"})
    else:
        typer.echo(f"unloaded {name}/{version}")


def _named(text: str) -> tuple[str, int]:
    name, slash, number = text.rpartition("/")
    if not (slash and name and number.isascii() and number.isdecimal() and 0 < int(number) < 1 << 63):
        raise typer.BadParameter(f"expected MODEL/VERSION as in clip-text/2, got {text!r}")
    return name, int(number)


def _row(model: Model) -> tuple[Any, ...]:
    use = "in use" if model.in_use else "previous" if model.previous else ""
    return (model.name, model.version, model.kind, model.family, model.dim, model.state, use, model.provider)


def _print_promotion(promotion: Promotion, *, as_json: bool, compared: bool) -> None:
    if as_json:
        print_json(promotion)
        return
    print_table(_COLUMNS, [_row(one) for one in promotion.models])
    if promotion.overlap is not None:
        typer.echo(f"{promotion.overlap:.1%} of the top 10 of {promotion.compared} recent queries stays")
    elif compared:
        typer.echo("nothing was compared: there was no recent query, or nothing changed")
