"""FAISS HNSW with nothing around it: what a server around it cannot pass on the same processors."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import faiss as typed_faiss
import numpy as np
from benchmarks.peers.driver.protocol import Call, Question, Rows, Setting, Threaded

from likewise.cli.benchmark import limit_faiss

faiss: Any = typed_faiss  # its own type information knows the C++ signatures, not the Python ones


class RawFaiss:
    """HNSW in this process; one query at a time on one thread, or batches on all. Options: m, ef_construction."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._index: Any = None
        self._rows: Rows | None = None

    def versions(self) -> dict[str, str]:
        """Of FAISS."""
        return {"faiss-cpu": metadata.version("faiss-cpu")}

    def load(self, rows: Rows) -> None:
        """Build the index on all threads."""
        options = self._setting.options
        threads = self._setting.threads
        built = limit_faiss.build_hnsw(
            rows.base, m=options["m"], ef_construction=options["ef_construction"], threads=threads
        )
        self._index, self._rows = built.index, rows

    def prepare(self, question: Question) -> Threaded:
        """With params "ef", the graph under a bitmap of the rows allowed; with "exact", a flat index of these rows."""
        assert self._rows is not None
        allowed = None if question.below is None else self._rows.share < question.below
        index, rows = self._index, None
        if question.params.get("exact"):
            flat = limit_faiss.build_flat(self._rows.base, allowed=allowed)
            index, rows, allowed = flat.index, flat.rows, None
        bitmap = None if allowed is None else np.packbits(allowed, bitorder="little")

        threads = 1 if question.batch == 1 else self._setting.threads
        calls = [question.queries[question.asked_by(call)] for call in range(question.calls)]

        @contextmanager
        def connect() -> Iterator[Call]:
            faiss.omp_set_num_threads(threads)  # counts for the calling thread only
            selector = {} if bitmap is None else {"sel": faiss.IDSelectorBitmap(bitmap)}
            params = (
                None if rows is not None else faiss.SearchParametersHNSW(efSearch=question.params["ef"], **selector)
            )

            def call(which: int) -> list[int]:
                _, found = index.search(calls[which], question.k, params=params)
                if rows is not None:
                    found = np.where(found < 0, -1, rows[np.maximum(found, 0)])
                answer: list[int] = found.reshape(-1).tolist()
                return answer

            yield call

        return Threaded(connect)

    def close(self) -> None:
        """Nothing was started."""


def adapter(setting: Setting) -> RawFaiss:
    """Ready to be loaded."""
    return RawFaiss(setting)
