"""Exports and imports as one call each, and what they may leave behind."""

import json
from pathlib import Path
from typing import Any

from likewise.shards import transfer
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.staging import STAGING_PREFIX
from likewise.shards.store import Store
from likewise.shards.transfer import Manifest


def export(gallery: GalleryStore, folder: Path, **options: Any) -> Manifest:
    wanted = {"version": gallery.version, "report": lambda _: None, **options}
    return transfer.export(gallery, folder, **wanted)


def load(store: Store, folder: Path, name: str = "shapes", **options: Any) -> GalleryStore:
    with transfer.imported(store, folder, name, **{"report": lambda _: None, **options}) as staged:
        return store.publish(staged, name)


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob(f"{STAGING_PREFIX}*")]


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / transfer.MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
