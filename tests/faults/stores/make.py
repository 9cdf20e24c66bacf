"""Writes the store that `test_upgrade` reads, in the format of the code that runs this.

A release with a new format runs it once and commits the folder; the folders of older formats are never written again.

    python -m tests.faults.stores.make
"""

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from likewise.client import AsyncClient
from likewise.server.embedded import running_server
from likewise.shards.spec import FORMAT

HERE: Final = Path(__file__).parent
DIM: Final = 4
ATTRIBUTES: Final[dict[str, object]] = {
    "colour": "string",
    "count": "int64",
    "price": "double",
    "sold": "bool",
    "made": "timestamp",
    "tags": "string_list",
}


def item(number: int) -> dict[str, Any]:
    """Attributes of an item; every third value is missing."""
    values: dict[str, Any] = {
        "colour": ("red", "grün", "青")[number % 3],
        "count": number - 5,
        "price": number / 4,
        "sold": number % 2 == 0,
        "made": datetime(2026, 1, 1 + number, 12, 30, tzinfo=UTC),
        "tags": ["a", "é"][: number % 3],
    }
    return {name: None if (number + i) % 3 == 0 else value for i, (name, value) in enumerate(values.items())}


def vectors(numbers: range) -> np.ndarray:
    """(n, DIM) float32 of different lengths."""
    return np.stack([np.random.default_rng(number).normal(size=DIM) * (number + 1) for number in numbers]).astype("f4")


async def write(folder: Path) -> None:
    """A gallery with replaced and deleted items, a snapshot and an attribute added later; and an empty one."""
    async with running_server(store=str(folder)) as address, AsyncClient(address) as client:
        first = {name: ATTRIBUTES[name] for name in list(ATTRIBUTES)[:5]}
        gallery = await client.create_gallery("things", dim=DIM, attributes=first, shards=2, index="hnsw")
        numbers = range(16)
        rows = [{name: item(number)[name] for name in first} for number in numbers]
        await gallery.upsert([f"thing-{number:02d}" for number in numbers], vectors=vectors(numbers), attributes=rows)
        await gallery.create_snapshot("early", note="before the changes")
        await gallery.update(attributes=ATTRIBUTES)
        changed = range(4, 12)
        await gallery.upsert(
            [f"thing-{number:02d}" for number in changed],
            vectors=vectors(range(104, 112)),
            attributes=[item(number) for number in changed],
        )
        await gallery.delete([f"thing-{number:02d}" for number in range(0, 16, 5)])
        await client.create_gallery("empty", dim=DIM)


async def read(folder: Path) -> dict[str, Any]:
    """What the galleries of a store hold and answer, as JSON values."""
    async with running_server(store=str(folder)) as address, AsyncClient(address) as client:
        found: dict[str, Any] = {}
        for info in await client.galleries():
            gallery = client.gallery(info.name)
            items = [one async for one in gallery.list(vectors=True)]
            hits = await gallery.search(vector=np.ones(DIM), k=5, exact=True)
            found[info.name] = {
                "attributes": dict(info.attributes),
                "index": info.index.kind,
                "shards": info.shards,
                "items": {
                    one.id: {
                        "vector": [round(float(number), 4) for number in one.vector],  # type: ignore[union-attr]
                        **{name: _plain(value) for name, value in one.attributes.items()},
                    }
                    for one in items
                },
                "found": [[one.id, round(one.score, 4)] for one in hits],
                "snapshots": [[one.name, one.note, one.rows] for one in await gallery.snapshots()],
            }
        return found


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def main() -> None:
    """Make the folder of this format, unless it is there: what is released stays as it is."""
    folder = HERE / f"format-{FORMAT}"
    if folder.exists():
        raise SystemExit(f"{folder.name} is there already; a released format is not written again")
    with patch("socket.gethostname", return_value="somewhere"):  # a writer's claim names its host
        asyncio.run(write(folder))
    (folder / "likewise.lock").unlink(missing_ok=True)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    expected = asyncio.run(_read_copy(folder))
    text = json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True)
    (HERE / f"format-{FORMAT}.json").write_text(text + "\n", encoding="utf-8")


async def _read_copy(folder: Path) -> dict[str, Any]:
    copy = folder.with_suffix(".copy")
    shutil.copytree(folder, copy)
    try:
        return await read(copy)
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()
