"""`likewise train`: training a model on data of one's own is not in this release, and the command says so."""

import typer

app = typer.Typer(add_completion=False)


@app.command()
def train() -> None:
    """Train a model on your own data: comes with a later release."""
    typer.echo(
        "likewise train: training on your own data comes with a later release. "
        "The built-in model is made anew by `make model` in a source tree (see docs/model.md).",
        err=True,
    )
    raise typer.Exit(2)
