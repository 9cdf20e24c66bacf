"""Which store version a read waits for, by the token that its caller sends along (read your own writes).

A token of the future is the caller's mistake, and only the writer can tell one for sure. But reads go on without the
writer: it is asked only about versions that this router has not seen yet, and while it does not answer, a token is
believed. Then the shards wait for the version, or the deadline passes.
"""

import asyncio
from collections import OrderedDict
from typing import Final

from likewise.server import failures, validate
from likewise.server.errors import DeadlinePassed, Overloaded, Unavailable
from likewise.server.protocols import GalleryHandle
from likewise.server.remote import deadlines
from likewise.v1 import common_pb2

GALLERIES_KEPT: Final = 4_096

_ASK_SHARE: Final = 0.25
"""Of what is left of the caller's time, for the writer to answer."""
_ASK_MAX_S: Final = 1.0

_AWAY: Final = (Unavailable, DeadlinePassed, Overloaded)


class VersionTokens:
    """The newest version of each gallery that this router has seen; for one event loop."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def note(self, gallery_id: str, version: int) -> None:
        """A version that is committed."""
        self._seen[gallery_id] = max(version, self._seen.get(gallery_id, 0))
        self._seen.move_to_end(gallery_id)
        if len(self._seen) > GALLERIES_KEPT:
            self._seen.popitem(last=False)

    async def least(self, token: common_pb2.VersionToken, handle: GalleryHandle) -> int:
        """The version to wait for.

        Raises:
            FailedPrecondition: VERSION_TOKEN_FOREIGN if the token is of another gallery.
            InvalidRequest: If the writer has committed no such version.
        """
        gallery_id = handle.spec.gallery_id
        known = self._seen.get(gallery_id, 0)
        if token.gallery_id == gallery_id and token.version > known:
            asked = await committed(handle)
            if asked is None:
                return int(token.version)
            self.note(gallery_id, asked)
            known = asked
        return validate.min_version(token, handle.spec, known)


async def committed(handle: GalleryHandle) -> int | None:
    """The newest version that the writer has committed; None if it does not say within a part of the caller's time."""
    left = deadlines.remaining_s()
    try:
        async with asyncio.timeout(_ASK_MAX_S if left is None else min(_ASK_MAX_S, left * _ASK_SHARE)):
            return await handle.writer.version()
    except TimeoutError:
        return None
    except Exception as error:
        if isinstance(failures.known(error), _AWAY):
            return None
        raise
