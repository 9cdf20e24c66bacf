"""Qdrant Edge, the in-process shard of Qdrant, called from threads with prepared requests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

import qdrant_edge as qdrant
from benchmarks.peers.driver.protocol import Call, Question, Rows, Setting, Threaded

_BATCH: Final = 1_000
_FULL_SCAN_KB: Final = 10_000  # Qdrant's default


class QdrantEdge:
    """One shard with an HNSW index, dot product, and an index on the attribute. Options: m, ef_construction."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._shard: Any = None

    def versions(self) -> dict[str, str]:
        """Of the package."""
        return {"qdrant-edge-py": metadata.version("qdrant-edge-py")}

    def load(self, rows: Rows) -> None:
        """Upsert in batches, index the attribute, and run the optimisers until they have nothing left to do."""
        self.close()
        folder = self._setting.folder / "shard"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        options = self._setting.options
        config = qdrant.EdgeConfig(
            vectors=qdrant.EdgeVectorParams(rows.base.shape[1], qdrant.Distance.Dot),
            hnsw_config=qdrant.HnswIndexConfig(options["m"], options["ef_construction"], _FULL_SCAN_KB),
        )
        shard = self._shard = qdrant.EdgeShard.create(str(folder), config)
        shard.update(qdrant.UpdateOperation.create_field_index("share", qdrant.PayloadSchemaType.Float))
        for start in range(0, len(rows.base), _BATCH):
            part = slice(start, start + _BATCH)
            columns = zip(rows.base[part], rows.share[part].tolist(), rows.cluster_share[part].tolist(), strict=True)
            points = [
                qdrant.Point(row, vector.tolist(), {"share": share, "cluster_share": cluster_share})
                for row, (vector, share, cluster_share) in enumerate(columns, start)
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()

    def prepare(self, question: Question) -> Threaded:
        """Requests beforehand; without payload and vectors, as ids and scores are what is wanted."""
        shard = self._shard
        where = None
        if question.below is not None:
            where = qdrant.Filter(must=[qdrant.FieldCondition("share", range=qdrant.RangeFloat(lt=question.below))])
        acorn = qdrant.AcornSearchParams(enable=True) if question.params.get("acorn") else None
        params = qdrant.SearchParams(hnsw_ef=question.params["ef"], acorn=acorn)
        requests = [
            qdrant.QueryRequest(
                limit=question.k, query=qdrant.Query.Nearest(query.tolist()), filter=where, params=params
            )
            for query in question.queries
        ]

        @contextmanager
        def connect() -> Iterator[Call]:
            def call(which: int) -> list[int]:
                return [point.id for point in shard.query(requests[which])]

            yield call

        return Threaded(connect)

    def close(self) -> None:
        """Close the shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def adapter(setting: Setting) -> QdrantEdge:
    """Ready to be loaded."""
    return QdrantEdge(setting)
