"""The client for ordinary code; it may be shared by threads, and so may the galleries it hands out."""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import grpc

from likewise.client import galleries, models, snapshots
from likewise.client.channel import DEFAULT_TIMEOUT_S, Option, make_config
from likewise.client.errors import AlreadyExists
from likewise.client.galleries import GalleryInfo, IndexSpec
from likewise.client.models import Health, Model, Promotion
from likewise.client.progress import ProgressChoice
from likewise.client.sync_gallery import Gallery
from likewise.client.transport import Transport
from likewise.client.versions import GalleryMemory
from likewise.wire import MAX_MESSAGE_BYTES


class Client:
    """A connection to a server; a context manager.

    Args:
        address: "host:port"; several with commas or as a list, called in turn; or a gRPC target ("dns:///name:port").
        timeout: Seconds a call may take unless it says otherwise; None for no limit.
        credentials: TLS (grpc.ssl_channel_credentials(...)); default plain text.
        metadata: Headers of every call.
        options: gRPC channel options.
        max_message_bytes: Largest message sent or accepted; the server has a limit of its own, 64 MiB by default.

    UNAVAILABLE, and CANCELLED by the server, are retried up to four times with backoff, for calls that may safely be
    sent twice; nothing else is.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        options: Sequence[Option] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        config = make_config(
            address,
            timeout=timeout,
            credentials=credentials,
            metadata=metadata,
            options=options,
            max_message_bytes=max_message_bytes,
        )
        self._transport = Transport(config)

    def create_gallery(
        self,
        name: str,
        *,
        encoder: str | None = None,
        dim: int | None = None,
        attributes: Mapping[str, object] | None = None,
        shards: int | None = None,
        replicas: int | None = None,
        index: str | IndexSpec | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            name: [a-z][a-z0-9_-]{0,62}.
            encoder: Model family that encodes images and texts, see `models`; or
            dim: Numbers a vector, for a gallery of vectors only.
            attributes: Attribute name to type: "string", "int64", "double", "bool", "timestamp", "string_list", or the
                Python type (str, int, float, bool, datetime, list[str]).
            shards: Partitions, default 1.
            replicas: Copies of each, default 1.
            index: "auto" (default), "flat", "hnsw", "ivf", a FAISS index_factory string, or an `IndexSpec`.
            exist_ok: Take the gallery that is there, if it has the same encoder or dimension and these attributes.
            timeout: Seconds; default the client's.

        Raises:
            AlreadyExists: If the name is taken, or with `exist_ok` by a different gallery.
        """
        create = galleries.create_call(
            name, encoder=encoder, dim=dim, attributes=attributes, shards=shards, replicas=replicas, index=index
        )
        try:
            info = self._transport.call(create, timeout)
        except AlreadyExists:
            if not exist_ok:
                raise
            info = self._transport.call(galleries.get_call(name), timeout)
            galleries.check_same(info, encoder=encoder, dim=dim, attributes=attributes)
        return Gallery(self._transport, GalleryMemory(name, info))

    def gallery(self, name: str) -> Gallery:
        """A handle on a gallery; asks the server nothing, so a wrong name shows at the first call."""
        return Gallery(self._transport, GalleryMemory(name))

    def galleries(self, *, timeout: float | None = None) -> list[GalleryInfo]:
        """All galleries in name order."""
        found: list[GalleryInfo] = []
        token = ""
        while True:
            page = self._transport.call(galleries.list_call(token), timeout)
            found.extend(page.galleries)
            token = page.next_page_token
            if not token:
                return found

    def delete_gallery(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a gallery with all its items, for good.

        Raises:
            NotFound: If it is not there.
        """
        self._transport.call(galleries.delete_call(name), timeout)

    def import_gallery(
        self,
        folder: str,
        name: str | None = None,
        *,
        read_only: bool = False,
        progress: ProgressChoice = None,
        timeout: float | None = math.inf,
    ) -> Gallery:
        """Make a gallery of a folder that `Gallery.export` wrote below the server's export root; all of it is checked.

        Args:
            folder: Its name there.
            name: Of the gallery to be; default that of the exported one.
            read_only: It takes no writes.
            progress: See `ProgressChoice`, in bytes.
            timeout: Seconds; default no limit.

        Raises:
            NotFound: If there is no such folder.
            AlreadyExists: If the name is taken.
            DataLoss: If a file of it is not what was written.
            FailedPrecondition: If it is no export, or of a newer release, or the server has no export root.
        """
        call = snapshots.import_call(folder, name, read_only=read_only)
        info = snapshots.follow(self._transport.stream(call, timeout), call, progress)
        return Gallery(self._transport, GalleryMemory(info.name, info))

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """All model versions, by name, then version."""
        found: list[Model] = []
        token = ""
        while True:
            page = self._transport.call(models.list_call(token), timeout)
            found.extend(page.models)
            token = page.next_page_token
            if not token:
                return found

    def model(self, name: str, version: int | None = None, *, timeout: float | None = None) -> Model:
        """One model; default the version in use, else the newest."""
        return self._transport.call(models.get_call(name, version), timeout)

    def load_model(self, name: str, version: int | None = None, *, timeout: float | None = None) -> Model:
        """Open a version beside the one in use and warm it; default the newest in the server's model repository.

        Loading a large model takes its time: give it a `timeout` to match. Repeating it is safe.

        Raises:
            NotFound: If the repository has no such model or version.
            FailedPrecondition: If it cannot be opened; the message says why, and whatever is in use goes on.
        """
        return self._transport.call(models.load_call(name, version), timeout)

    def promote_model(
        self,
        name: str,
        version: int,
        *,
        together: Mapping[str, int] | None = None,
        min_overlap: float = 0.0,
        force: bool = False,
        timeout: float | None = None,
    ) -> Promotion:
        """Make a loaded version the one in use, for all queries that begin after it.

        Args:
            name: Model.
            version: Its version.
            together: Versions of other models of the family, by name, that change at the same moment.
            min_overlap: Refuse unless this mean share of the ten best hits of recent live queries stays, in [0, 1].
            force: Do not compare; the space is checked all the same.
            timeout: Seconds; default the client's.

        Raises:
            NotFound: If there is no such version.
            FailedPrecondition: If it is not loaded, the new space does not fit the family or a gallery
                (SPACE_MISMATCH, with both digests), or too little overlaps.
        """
        call = models.promote_call(name, version, together=together, min_overlap=min_overlap, force=force)
        return self._transport.call(call, timeout)

    def rollback_model(self, name: str, *, timeout: float | None = None) -> Promotion:
        """Go back to what was in use before the last promotion of the model's family.

        Raises:
            FailedPrecondition: If there is nothing to go back to, or a gallery was made for the new space.
        """
        return self._transport.call(models.rollback_call(name), timeout)

    def unload_model(self, name: str, version: int, *, timeout: float | None = None) -> None:
        """Free a version once the last query that uses it has ended; one that is not loaded is fine.

        Raises:
            FailedPrecondition: If it is in use.
        """
        self._transport.call(models.unload_call(name, version), timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """Whether the server takes calls; Unavailable is raised when nobody answers."""
        return self._transport.call(models.health_call(service), timeout)

    def close(self) -> None:
        """End the connection; calls under way are given up."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
