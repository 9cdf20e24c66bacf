"""The durable truth: a folder, or any URI that Lance takes, with one dataset a gallery.

`<uri>/likewise.json` holds `{"format": 1}`; `<uri>/<gallery>.lance` is a plain Lance dataset that has the gallery's
description in its schema metadata under "likewise". Further JSON documents may lie beside them (`read_document`).
"""

import json
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import lance
from lance.file import LanceFileSession

from likewise.shards import layout
from likewise.shards.copying import NotLocal
from likewise.shards.failures import told_apart
from likewise.shards.gallery_store import SPEC_KEY, GalleryStore
from likewise.shards.protocols import ShardError, StoreFailure
from likewise.shards.spec import FORMAT, GALLERY_NAME, GallerySpec, to_json, validate
from likewise.shards.staging import flush, move, staging, sweep

FORMAT_FILE: Final = "likewise.json"
_SUFFIX: Final = ".lance"
_TRASH: Final = ".deleted-"


class NewerFormat(ShardError):
    """The store was written by a newer release."""


class GalleryNotFound(ShardError):
    """The store has no gallery of that name."""


class GalleryExists(ShardError):
    """The store already has a gallery of that name."""


def local_folder(uri: str) -> Path | None:
    """The folder that a store's URI means, absolute; None if it is not on this machine's file system."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri else Path(uri).absolute()


class Store:
    """All galleries at one place. Blocking: call it from an executor; safe in several threads.

    It takes no lock: whoever writes to a local store holds a `lock.StoreLock` on `folder`.

    Attributes:
        uri: Where.
        folder: The same as a local path, None for an object store.
    """

    def __init__(self, uri: str, *, storage_options: dict[str, str] | None = None, sync: bool = True) -> None:
        """Open a store, making it if there is none.

        Args:
            uri: A folder, or any URI that Lance takes ("s3://bucket/prefix").
            storage_options: Lance's options for an object store.
            sync: Flush every commit to a local device, so that it survives power loss too (about 2 ms a commit);
                without, it survives the end of any process, kill -9 included.

        Raises:
            NewerFormat: If a newer release wrote it.
            StoreFailure: If the place cannot be read or written.
        """
        self.folder = local_folder(uri)
        self.uri = str(self.folder) if self.folder is not None else uri.rstrip("/")
        self._options = storage_options
        self._sync = sync
        with told_apart("opening the store"):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                for trash in self.folder.glob(f"{_TRASH}*"):
                    shutil.rmtree(trash, ignore_errors=True)
                sweep(self.folder)
            self._files = LanceFileSession(self.uri, storage_options=storage_options)
            self._check_format()

    def galleries(self) -> list[str]:
        """Names of the galleries, sorted."""
        with told_apart("listing the galleries"):
            entries = self._files.list_with_delimiter().common_prefixes
            names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
            return sorted(
                name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and self._is_whole(name)
            )

    def create(self, spec: GallerySpec) -> GalleryStore:
        """Make an empty gallery. On a local folder it is there at once or not at all.

        Raises:
            GalleryExists: If the name is taken.
            SpecError: If the description is not valid.
            StoreFailure: If the place cannot be written.
        """
        validate(spec)
        if spec.name in self.galleries():
            raise GalleryExists(f"the gallery {spec.name!r} exists already")
        schema = layout.store_schema(spec).with_metadata({SPEC_KEY: to_json(spec)})

        def write(uri: str) -> None:
            lance.write_dataset(
                schema.empty_table(),
                uri,
                schema=schema,
                storage_options=self._options,
                enable_stable_row_ids=True,
            )

        with told_apart("creating the gallery"):
            if self.folder is None:
                write(self._uri_of(spec.name))
                return self.open(spec.name)
            # A dataset is several files; a process that ends between them must leave nothing that cannot be opened.
            with self.staging() as folder:
                write(str(folder / spec.name))
                return self.publish(folder / spec.name, spec.name)

    def open(self, name: str) -> GalleryStore:
        """Open a gallery at its newest version.

        Raises:
            GalleryNotFound: If there is none of that name.
            SpecError: If a newer release wrote it.
            StoreFailure: If it cannot be read.
        """
        self._require(name)
        folder = self._folder_of(name)
        return GalleryStore(self._uri_of(name), folder=folder, storage_options=self._options, sync=self._sync)

    def delete(self, name: str) -> None:
        """Delete a gallery with everything in it. On a local folder it is gone at once or not at all.

        Raises:
            GalleryNotFound: If there is none of that name.
            StoreFailure: If the place cannot be written.
        """
        self._require(name)
        folder = self._folder_of(name)
        with told_apart("deleting the gallery"):
            if folder is None:
                lance.LanceDataset.drop(self._uri_of(name), storage_options=self._options)
            else:
                trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=folder.parent))
                folder.rename(trash / folder.name)
                shutil.rmtree(trash, ignore_errors=True)

    def staging(self) -> AbstractContextManager[Path]:
        """A hidden folder of the store in which a gallery is made that is then published; see `staging.staging`.

        Raises:
            NotLocal: If the store is no local folder.
        """
        if self.folder is None:
            raise NotLocal("galleries are restored and imported in local folders only, not yet in an object store")
        return staging(self.folder)

    def publish(self, dataset: Path, name: str) -> GalleryStore:
        """Take a dataset that was made in `staging` as the gallery `name`: there at once and durable, or not at all.

        Raises:
            GalleryExists: If the name is taken.
            StoreFailure: If the place cannot be written.
        """
        target = self._folder_of(name)
        assert target is not None, "only a local store has staging"
        with told_apart("storing the gallery"):
            try:
                move(dataset, target)
            except FileExistsError as error:
                raise GalleryExists(f"the gallery {name!r} exists already") from error
        return self.open(name)

    def read_document(self, name: str) -> Any:
        """A JSON document that lies beside the galleries; None if there is none.

        Raises:
            StoreFailure: If it cannot be read, or is no JSON.
        """
        with told_apart(f"reading {name}"):
            try:
                return self._read(name) if self._files.contains(name) else None
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise StoreFailure(f"{name} of the store is damaged: {error}; mend it or delete it") from error

    def write_document(self, name: str, value: Any) -> None:
        """Replace a JSON document as a whole: readers see the old or the new one, also after a crash.

        Raises:
            StoreFailure: If it cannot be written; the old one stays.
        """
        text = json.dumps(value, indent=2, sort_keys=True) + "\n"
        with told_apart(f"writing {name}"), tempfile.TemporaryDirectory(dir=self.folder, prefix=_TRASH) as scratch:
            path = Path(scratch) / name
            with path.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            if self.folder is None:
                self._files.upload_file(str(path), name)
            else:
                path.replace(self.folder / name)
                flush(self.folder)

    def _check_format(self) -> None:
        if self._files.contains(FORMAT_FILE):
            written = int(self._read(FORMAT_FILE)["format"])
            if written > FORMAT:
                raise NewerFormat(f"the store has format {written}, this release reads up to {FORMAT}: upgrade")
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / FORMAT_FILE
            path.write_text(json.dumps({"format": FORMAT}) + "\n")
            self._files.upload_file(str(path), FORMAT_FILE)

    def _read(self, name: str) -> Any:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            self._files.download_file(name, str(path))
            return json.loads(path.read_text())

    def _is_whole(self, dataset: str) -> bool:
        """Whether it has a manifest; in an object store, one that was cut off while it was made or deleted may not."""
        return self.folder is not None or bool(self._files.list_with_delimiter(f"{dataset}/_versions").objects)

    def _require(self, name: str) -> None:
        if not GALLERY_NAME.fullmatch(name) or name not in self.galleries():
            raise GalleryNotFound(f"there is no gallery {name!r}")

    def _uri_of(self, name: str) -> str:
        return f"{self.uri}/{name}{_SUFFIX}"

    def _folder_of(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}{_SUFFIX}"
