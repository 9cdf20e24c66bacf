"""Ingest speed beside one raw Lance write and one raw FAISS build, in one run: see `--help`."""

import typer

from likewise.cli.bench import ingest

if __name__ == "__main__":
    typer.run(ingest)
