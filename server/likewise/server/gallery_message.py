"""A gallery as callers see it."""

import asyncio

from likewise.server.errors import Unavailable
from likewise.server.protocols import GalleryHandle
from likewise.server.version_tokens import committed
from likewise.shards.spec import to_message
from likewise.v1 import gallery_service_pb2 as pb


async def described(handle: GalleryHandle) -> pb.Gallery:
    """Its description, its newest version, and whether it can be written to.

    While the writer does not answer, the version is the newest that a shard serves.

    Raises:
        Unavailable: If no shard answers either.
    """
    version = await committed(handle)
    message = to_message(handle.spec, version=await _served(handle) if version is None else version)
    message.read_only = handle.read_only
    return message


async def _served(handle: GalleryHandle) -> int:
    counts = await asyncio.gather(*(shard.count(b"") for shard in handle.shards), return_exceptions=True)
    versions = [count[1] for count in counts if not isinstance(count, BaseException)]
    if not versions:
        raise Unavailable(f"neither the writer nor a shard of gallery {handle.spec.name!r} answers", retry_after_s=1.0)
    return max(versions)
