"""Milvus Lite in this process, called through pymilvus' MilvusClient from threads, as its users call it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

from benchmarks.peers.driver.protocol import Call, Question, Rows, Setting, Threaded
from pymilvus import DataType, MilvusClient

_NAME: Final = "items"
_BATCH: Final = 2_000  # rows a call, under the message limit at 4 kB a row


class MilvusLite:
    """One collection with an HNSW index, inner product, and an index on the attribute. Options: m, ef_construction."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._client = MilvusClient(uri=str(setting.folder / "milvus.db"))

    def versions(self) -> dict[str, str]:
        """Of the engine and of its client."""
        return {name: metadata.version(name) for name in ("milvus-lite", "pymilvus")}

    def load(self, rows: Rows) -> None:
        """Insert in batches, flush, and build the index by loading the collection."""
        client = self._client
        if client.has_collection(_NAME):
            client.drop_collection(_NAME)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=rows.base.shape[1])
        schema.add_field("share", DataType.DOUBLE)
        schema.add_field("cluster_share", DataType.DOUBLE)
        client.create_collection(_NAME, schema=schema)
        for start in range(0, len(rows.base), _BATCH):
            part = slice(start, start + _BATCH)
            columns = zip(rows.base[part], rows.share[part].tolist(), rows.cluster_share[part].tolist(), strict=True)
            client.insert(
                _NAME,
                [
                    {"id": row, "embedding": vector, "share": share, "cluster_share": cluster_share}
                    for row, (vector, share, cluster_share) in enumerate(columns, start)
                ],
            )
        client.flush(_NAME)
        options = self._setting.options
        index = client.prepare_index_params()
        index.add_index(
            "embedding",
            index_type="HNSW",
            metric_type="IP",
            params={"M": options["m"], "efConstruction": options["ef_construction"]},
        )
        index.add_index("share", index_type="INVERTED")
        client.create_index(_NAME, index)
        client.load_collection(_NAME)
        client.search(_NAME, data=[rows.base[0]], limit=1)

    def prepare(self, question: Question) -> Threaded:
        """The client encodes each query in the call; it has no way to do that beforehand."""
        client = self._client
        about: dict[str, Any] = {"limit": question.k, "search_params": {"params": {"ef": question.params["ef"]}}}
        if question.below is not None:
            about["filter"] = f"share < {question.below!r}"

        @contextmanager
        def connect() -> Iterator[Call]:
            def call(which: int) -> list[int]:
                return [hit["id"] for hit in client.search(_NAME, data=[question.queries[which]], **about)[0]]

            yield call

        return Threaded(connect)

    def close(self) -> None:
        """Close the client; the engine ends with the process."""
        self._client.close()


def adapter(setting: Setting) -> MilvusLite:
    """Open an empty store."""
    return MilvusLite(setting)
