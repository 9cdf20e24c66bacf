"""What a commit to a gallery's store did, and the files that it left."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did.

    Attributes:
        base_version: Version before.
        version: Version after; the same if there was nothing to do.
        upserts: The rows written, in the store's schema.
        deleted_ids: Ids that were there and are gone.
        existed: All ids named in the commit that were there before it.
        whole: Whether `upserts` are all the rows written; else followers read them from the store.
    """

    base_version: int
    version: int
    upserts: pa.RecordBatch
    deleted_ids: Sequence[str]
    existed: frozenset[str]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Fragment:
    """One file of rows: its id, rows in the file, and how many of them are retired."""

    id: int
    rows: int
    deleted: int
