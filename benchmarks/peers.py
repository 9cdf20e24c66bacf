"""Likewise beside pgvector, Chroma, Milvus Lite, Qdrant Edge, LanceDB, raw FAISS and a bare gRPC echo: see `--help`."""

import sys
from pathlib import Path

import typer

# The parts are a package beside this file, and the drivers in the peers' environments import it by the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.command import peers

if __name__ == "__main__":
    typer.run(peers)
