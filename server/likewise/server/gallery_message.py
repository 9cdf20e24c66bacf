"""A gallery as callers see it."""

from likewise.server.protocols import GalleryHandle
from likewise.shards.spec import to_message
from likewise.v1 import gallery_service_pb2 as pb


async def described(handle: GalleryHandle) -> pb.Gallery:
    """Its description, its newest version, and whether it can be written to."""
    message = to_message(handle.spec, version=await handle.writer.version())
    message.read_only = handle.read_only
    return message
