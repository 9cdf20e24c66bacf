"""Chroma's own server, `chroma run`, called over HTTP with prepared bodies, or through its Python client."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import chromadb
import orjson
from benchmarks.peers.driver.protocol import Call, Question, Rows, Setting, Threaded

_HOST: Final = "127.0.0.1"
_NAME: Final = "items"
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_JSON: Final = {"Content-Type": "application/json"}


class ChromaServer:
    """One collection, inner product. Options: m, ef_construction, client ("bare" or "sdk")."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._port = _free_port()
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(setting.folder / "store")]
        # Anonymised telemetry would measure the network.
        environment = {**os.environ, "ANONYMIZED_TELEMETRY": "False"}
        self._server = subprocess.Popen([*command, "--host", _HOST, "--port", str(self._port)], env=environment)
        try:
            self._client = _when_up(self._server, self._port)
        except BaseException:
            self.close()
            raise
        self._collection: Any = None

    def versions(self) -> dict[str, str]:
        """Of the package, which brings the server along."""
        return {"chromadb": metadata.version("chromadb")}

    def load(self, rows: Rows) -> None:
        """Add in the largest batches it takes; a first query makes it index what it has logged."""
        if self._collection is not None:
            self._client.delete_collection(_NAME)
        options = self._setting.options
        graph = {"space": "ip", "max_neighbors": options["m"], "ef_construction": options["ef_construction"]}
        self._collection = self._client.create_collection(_NAME, configuration={"hnsw": graph}, embedding_function=None)
        batch = self._client.get_max_batch_size()
        for start in range(0, len(rows.base), batch):
            part = slice(start, start + batch)
            pairs = zip(rows.share[part].tolist(), rows.cluster_share[part].tolist(), strict=True)
            self._collection.add(
                ids=[f"item-{row:09d}" for row in range(start, min(start + batch, len(rows.base)))],
                embeddings=rows.base[part],
                metadatas=[{"share": share, "cluster_share": cluster_share} for share, cluster_share in pairs],
            )
        self._collection.query(query_embeddings=rows.base[:1], n_results=1, include=[])

    def prepare(self, question: Question) -> Threaded:
        """The number of candidates belongs to the collection, not to the query, and is set here."""
        self._collection.modify(configuration={"hnsw": {"ef_search": question.params["ef"]}})
        where = None if question.below is None else {"share": {"$lt": question.below}}
        return Threaded(
            lambda: (self._sdk if self._setting.options["client"] == "sdk" else self._bare)(question, where)
        )

    def close(self) -> None:
        """Stop the server."""
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    @contextmanager
    def _bare(self, question: Question, where: dict[str, Any] | None) -> Iterator[Call]:
        path = (
            f"/api/v2/tenants/{self._client.tenant}/databases/{self._client.database}"
            f"/collections/{self._collection.id}/query"
        )
        about = {"n_results": question.k, "include": ["distances"], **({"where": where} if where else {})}
        bodies = [
            orjson.dumps({**about, "query_embeddings": [query]}, option=orjson.OPT_SERIALIZE_NUMPY)
            for query in question.queries
        ]
        with contextlib.closing(http.client.HTTPConnection(_HOST, self._port, timeout=60)) as connection:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def call(which: int) -> list[str]:
                connection.request("POST", path, bodies[which], _JSON)
                response = connection.getresponse()
                body = response.read()
                if response.status != http.client.OK:
                    raise RuntimeError(f"HTTP {response.status}: {body[:200]!r}")
                ids: list[str] = orjson.loads(body)["ids"][0]
                return ids

            yield call

    @contextmanager
    def _sdk(self, question: Question, where: dict[str, Any] | None) -> Iterator[Call]:
        collection = self._collection

        def call(which: int) -> list[str]:
            query = question.queries[which : which + 1]
            found = collection.query(query_embeddings=query, n_results=question.k, where=where, include=["distances"])
            ids: list[str] = found["ids"][0]
            return ids

        yield call


def adapter(setting: Setting) -> ChromaServer:
    """Start the server."""
    return ChromaServer(setting)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _when_up(server: subprocess.Popen[bytes], port: int) -> Any:
    """A client, once the server answers.

    Raises:
        RuntimeError: If it ends instead, or is silent for a minute.
    """
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client = chromadb.HttpClient(host=_HOST, port=port)
            client.heartbeat()
            return client
        except Exception as error:  # the client raises ValueError, httpx errors or its own, by version
            if server.poll() is not None:
                raise RuntimeError(f"`chroma run` ended with {server.returncode}") from error
            if time.monotonic() > deadline:
                raise RuntimeError(f"`chroma run` does not answer after {_START_S:.0f} s: {error}") from error
        time.sleep(0.1)
