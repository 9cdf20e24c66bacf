"""LanceDB in this process, called through its asynchronous API."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import lancedb
import numpy as np
import pyarrow as pa
from benchmarks.peers.driver.protocol import AsyncCall, OnLoop, Question, Rows, Setting
from lancedb import index as indexes

_NAME: Final = "items"


class LanceDb:
    """One table with an IVF-HNSW-SQ index and a B-tree on the attribute. Options: m, ef_construction, partitions."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    @property
    def _folder(self) -> Path:
        return self._setting.folder / "store"

    def versions(self) -> dict[str, str]:
        """Of the package."""
        return {"lancedb": metadata.version("lancedb")}

    def load(self, rows: Rows) -> None:
        """Write everything at once, then build both indexes."""
        shutil.rmtree(self._folder, ignore_errors=True)
        count, dim = rows.base.shape
        table = pa.table(
            {
                "id": pa.array(np.arange(count)),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.base.reshape(-1)), dim),
                "share": pa.array(rows.share),
                "cluster_share": pa.array(rows.cluster_share),
            }
        )
        asyncio.run(self._store(table))

    async def _store(self, rows: pa.Table) -> None:
        options = self._setting.options
        table = await (await lancedb.connect_async(str(self._folder))).create_table(_NAME, rows)
        graph = indexes.HnswSq(
            distance_type="dot",
            num_partitions=options["partitions"],
            m=options["m"],
            ef_construction=options["ef_construction"],
        )
        await table.create_index("vector", config=graph)
        await table.create_index("share", config=indexes.BTree())

    def prepare(self, question: Question) -> OnLoop:
        """Queries are built in the call: a query of this API is used up by its execution."""

        @asynccontextmanager
        async def connect() -> AsyncIterator[AsyncCall]:
            table = await (await lancedb.connect_async(str(self._folder))).open_table(_NAME)
            params = question.params

            async def call(which: int) -> list[int]:
                query: Any = table.query().nearest_to(question.queries[which]).distance_type("dot")
                query = query.nprobes(params["nprobes"]).ef(params["ef"]).limit(question.k).select(["id", "_distance"])
                if params["refine_factor"]:
                    query = query.refine_factor(params["refine_factor"])
                if question.below is not None:
                    query = query.where(f"share < {question.below!r}")  # before the search, which is the default
                found: list[int] = (await query.to_arrow())["id"].to_pylist()
                return found

            yield call

        return OnLoop(connect)

    def close(self) -> None:
        """Nothing stays open between runs."""


def adapter(setting: Setting) -> LanceDb:
    """Ready to be loaded."""
    return LanceDb(setting)
