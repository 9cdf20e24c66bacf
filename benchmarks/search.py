"""Search speed beside a bare gRPC echo and raw FAISS, in one run: see `--help`."""

import typer

from likewise.cli.bench import search

if __name__ == "__main__":
    typer.run(search)
