"""Encoding beside raw ONNX Runtime in one run: see `--help`.

`--model vit-b-32` measures a large image encoder through the service with concurrent callers; the default, the built-in
models through queries by picture and condition, beside a bare gRPC echo too.
"""

import typer

from likewise.cli.bench import encode

if __name__ == "__main__":
    typer.run(encode)
