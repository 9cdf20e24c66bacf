"""Snapshots as messages, and back."""

from likewise.shards.snapshots import Snapshot
from likewise.v1 import gallery_service_pb2 as pb


def snapshot_message(snapshot: Snapshot) -> pb.Snapshot:
    """The message of a snapshot."""
    message = pb.Snapshot(name=snapshot.name, version=snapshot.version, rows=snapshot.rows, note=snapshot.note)
    message.create_time.FromMicroseconds(snapshot.created_micros)
    return message


def snapshot_of(message: pb.Snapshot) -> Snapshot:
    """The snapshot of a message."""
    return Snapshot(
        name=message.name,
        version=message.version,
        rows=message.rows,
        created_micros=message.create_time.ToMicroseconds(),
        note=message.note,
    )
