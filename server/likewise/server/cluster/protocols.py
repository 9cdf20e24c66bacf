"""The seam between the controller and the store."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from likewise.server.cluster.generation import Stored
from likewise.shards.copying import Report
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec
from likewise.v1 import gallery_service_pb2


class Catalogue(Stored, Protocol):
    """The galleries of a store. Blocking: the controller calls it from an executor."""

    def specs(self) -> Sequence[GallerySpec]:
        """Every gallery there is."""
        ...

    def spec(self, name: str) -> GallerySpec:
        """The description of a gallery on record."""
        ...

    def create(self, spec: GallerySpec) -> None:
        """Make an empty gallery."""
        ...

    def delete(self, name: str) -> None:
        """Delete a gallery with its data."""
        ...

    def read_only(self, name: str) -> bool:
        """Whether a gallery takes no writes."""
        ...

    def create_snapshot(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """Name a version of a gallery, the newest if None."""
        ...

    def snapshots(self, gallery: str) -> Sequence[Snapshot]:
        """Those of a gallery, by name."""
        ...

    def delete_snapshot(self, gallery: str, name: str) -> None:
        """Forget a snapshot."""
        ...

    def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GallerySpec:
        """Make a gallery of a snapshot, all of it or nothing, and return its description."""
        ...

    def exporting(self, gallery: str, snapshot: str, folder: str) -> Callable[[Report], gallery_service_pb2.Export]:
        """The work of an export, see `Exports.exporting`."""
        ...

    def importing(self, folder: str, name: str, *, read_only: bool) -> Callable[[Report], GallerySpec]:
        """The work of an import, see `Exports.importing`; the gallery is in the store when it ends."""
        ...

    def read_document(self, name: str) -> Any:
        """A JSON document beside the galleries; None if there is none."""
        ...

    def write_document(self, name: str, value: Any) -> None:
        """Replace it; durable when this returns."""
        ...

    def close(self) -> None:
        """Give the store back."""
        ...
