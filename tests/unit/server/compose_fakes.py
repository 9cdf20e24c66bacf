"""Encoders and a composer whose embeddings depend on all of their input, to compose queries with."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from likewise.server.compose import Composed, compose_query, unit
from likewise.server.protocols import Encoded, Family
from likewise.server.query import ConditionInput, ReferenceInput, StoredReference
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2
from likewise.v1.search_service_pb2 import CONDITION_MODE_CHANGE, CONDITION_MODE_FOCUS

DIM = 8


def embedding(data: bytes | str) -> F32:
    """A raw embedding of no particular length that depends on all of the data."""
    raw = data.encode() if isinstance(data, str) else data
    seed = int.from_bytes(raw.ljust(8, b"\x01")[:32], "little")
    return (3.0 * np.random.default_rng(seed).standard_normal(DIM)).astype(np.float32)


@dataclass(eq=False)
class FakeEncoder:
    kind: str
    calls: list[list[bytes | str]] = field(default_factory=list)
    error: Exception | None = None
    table: dict[bytes | str, F32] = field(default_factory=dict)
    warnings: tuple[common_pb2.Warning, ...] = ()
    ran: asyncio.Event = field(default_factory=asyncio.Event)
    awaits: asyncio.Event | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        return common_pb2.ModelRef(name=f"fake-{self.kind}", version=1, kind=f"{self.kind}_encoder", space="s")

    async def encode(self, inputs: Sequence[bytes] | Sequence[str]) -> Encoded:
        self.calls.append(list(inputs))
        self.ran.set()
        if self.awaits is not None:
            await self.awaits.wait()
        if self.error is not None:
            raise self.error
        rows = [self.table.get(one, embedding(one)) for one in inputs]
        vectors = np.array(rows, np.float32).reshape(len(rows), -1)
        return Encoded(vectors, decode_us=len(inputs), encode_us=10 * len(inputs), warnings=self.warnings)


@dataclass
class FakeComposer:
    """Reads raw embeddings: the result depends on the length of the reference."""

    calls: int = 0
    error: Exception | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        return common_pb2.ModelRef(name="fake-composer", version=3, kind="composer", space="s")

    def condition_text(self, text: str, mode: int) -> str:
        return f"{'the same ' * (mode == CONDITION_MODE_FOCUS)}{'another ' * (mode == CONDITION_MODE_CHANGE)}{text}"

    async def compose(self, references: F32, conditions: F32) -> F32:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return np.stack([unit(np.tanh(r) + 0.5 * np.roll(c, 1)) for r, c in zip(references, conditions, strict=True)])


@dataclass
class Models:
    image: FakeEncoder = field(default_factory=lambda: FakeEncoder("image"))
    text: FakeEncoder = field(default_factory=lambda: FakeEncoder("text"))
    composer: FakeComposer = field(default_factory=FakeComposer)

    @property
    def family(self) -> Family:
        return Family("fake", "s", DIM, self.image, self.text, self.composer)

    async def query(self, reference: ReferenceInput | None, *conditions: ConditionInput) -> Composed:
        return await compose_query(self.family, DIM, reference=reference, conditions=conditions)


STORED = StoredReference("item-1", embedding("stored"))
