"""Goodput at twice the saturation rate, in an open loop with deadlines: see `--help`."""

import typer

from likewise.cli.bench import overload

if __name__ == "__main__":
    typer.run(overload)
