"""Rows that vary in few directions, as embeddings do."""

import numpy as np
from tests.unit.shards.fakes import F32, MemoryStore, gallery, unit

from likewise.shards.spec import IndexSpec

DIM = 96
HNSW = IndexSpec(kind="hnsw", m=16)


def surface(rows: int, *, latent: int, dim: int = DIM, seed: int = 0, noise: float = 0.01) -> F32:
    """Unit vectors around 64 centres on a surface of `latent` dimensions, and a little off it."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    embedding = np.linalg.qr(world.standard_normal((dim, latent)))[0].T
    centres = world.standard_normal((64, latent))
    points = centres[rng.integers(64, size=rows)] + 0.6 * rng.standard_normal((rows, latent))
    return unit(points @ embedding + noise * rng.standard_normal((rows, dim)))


def stored(rows: F32, index: IndexSpec = HNSW) -> MemoryStore:
    store = MemoryStore(gallery(dim=rows.shape[1], index=index))
    store.commit([f"i{i:04d}" for i in range(len(rows))], rows, {"count": list(range(len(rows)))})
    return store
