"""Versions of a gallery, and what a gallery's handle remembers between calls."""

import threading
from dataclasses import dataclass
from typing import Any

from likewise.client.errors import InvalidType
from likewise.client.galleries import GalleryInfo
from likewise.v1 import common_pb2 as pb


@dataclass(frozen=True, slots=True)
class VersionToken:
    """A point in a gallery's history; given as `at_least`, it makes the writes up to it visible."""

    gallery_id: str
    version: int


def token_of(message: pb.VersionToken) -> VersionToken:
    """A token of an answer."""
    return VersionToken(message.gallery_id, message.version)


class GalleryMemory:
    """What a handle knows of its gallery. Thread-safe.

    Attributes:
        name: The gallery.
        info: Its description, once fetched; None before.
        newest: Token of the newest write made here; None before the first.
        forms: Forms of recent searches, see `likewise.client.requests`.
    """

    def __init__(self, name: str, info: GalleryInfo | None = None) -> None:
        self.name = name
        self.info = info
        self.forms: dict[object, Any] = {}
        self.newest: VersionToken | None = None
        self._lock = threading.Lock()

    def remember(self, token: VersionToken) -> None:
        """Note a write; one of a gallery made anew replaces what was."""
        if not token.gallery_id:
            return
        with self._lock:
            known = self.newest
            if known is None or known.gallery_id != token.gallery_id or known.version < token.version:
                self.newest = token

    def at_least(self, choice: VersionToken | bool) -> pb.VersionToken | None:
        """The token to send: a given one, the newest own write for True, none for False.

        Raises:
            InvalidType: If the choice is something else.
        """
        if not isinstance(choice, bool | VersionToken):
            raise InvalidType(f"at_least must be a VersionToken, True or False, got {choice!r}", field="at_least")
        token = self.newest if choice is True else choice
        return pb.VersionToken(gallery_id=token.gallery_id, version=token.version) if token else None
