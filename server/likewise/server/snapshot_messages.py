"""Snapshots, and how far transfers are, as messages and back."""

from likewise.shards.copying import Progress
from likewise.shards.snapshots import Snapshot
from likewise.shards.transfer import Manifest
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


def progress_message(progress: Progress) -> pb.TransferProgress:
    """The message of a progress."""
    return pb.TransferProgress(
        files_done=progress.files_done,
        files=progress.files,
        bytes_done=progress.bytes_done,
        bytes=progress.bytes,
    )


def progress_of(message: pb.TransferProgress) -> Progress:
    """The progress of a message."""
    return Progress(message.files_done, message.files, message.bytes_done, message.bytes)


def export_message(folder: str, manifest: Manifest) -> pb.Export:
    """The message of an export that is done."""
    return pb.Export(
        folder=folder,
        gallery=manifest.gallery,
        version=manifest.version,
        rows=manifest.rows,
        files=len(manifest.files),
        bytes=manifest.bytes,
    )
