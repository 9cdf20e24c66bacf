"""Queries by picture and condition beside raw ONNX Runtime and a bare gRPC echo, in one run: see `--help`."""

import typer

from likewise.cli.bench import encode

if __name__ == "__main__":
    typer.run(encode)
