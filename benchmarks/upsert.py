"""Rows a second that one streaming client has acknowledged: see `--help`."""

import typer

from likewise.cli.bench import upsert

if __name__ == "__main__":
    typer.run(upsert)
