"""Generate the message and stub modules from the protos beside this file.

Usage: python protos/generate.py OUTPUT

The path under protos/ is the Python package path, so nothing in the output needs rewriting. The versions of
grpcio-tools and mypy-protobuf are pinned in pyproject.toml: they decide the oldest grpcio and protobuf a user may have.
"""

import re
import sys
from pathlib import Path

import google.rpc
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and, for protos with a service, *_pb2_grpc.py and .pyi below `output`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    includes = [PROTOS, Path(protoc.__file__).parent / "_proto", Path(google.rpc.__path__[0]).parent.parent]
    arguments = [
        "protoc",
        *(f"-I{include}" for include in includes),
        f"--python_out={output}",
        f"--grpc_python_out={output}",
        f"--mypy_out=quiet:{output}",
        f"--mypy_grpc_out=quiet:{output}",
        *sources,
    ]
    if protoc.main(arguments):
        raise SystemExit(1)
    for source in sources:
        if not re.search(r"^service ", (PROTOS / source).read_text(), re.MULTILINE):
            stem = output / source.removesuffix(".proto")
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                stem.with_name(stem.name + suffix).unlink(missing_ok=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
