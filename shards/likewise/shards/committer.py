"""The blocking half of a gallery's writer: everything here runs on its one commit thread.

Only `Committer.clean_up` may run beside it, because it commits nothing.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards import answers, layout
from likewise.shards.answers import Mark
from likewise.shards.columns import ColumnError, check_vectors
from likewise.shards.failures import told_apart
from likewise.shards.fence import Fenced
from likewise.shards.gallery_store import NOTE_KEY, Commit, GalleryStore
from likewise.shards.group import Delete, Upsert, fold
from likewise.shards.maintenance import MaintenancePolicy, plan_compaction
from likewise.shards.protocols import ShardError, StoreFailure, WriteResult
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2

_log = logging.getLogger(__name__)

Match = Callable[[pa.Table, common_pb2.Filter], npt.NDArray[np.bool_]]
"""(rows, filter) -> (rows,) booleans; raises UnknownAttribute for a filter that does not fit the schema.

The rows have the id and at least the attributes that the filter names, as far as the gallery has them.
"""

Write = Upsert | Delete | common_pb2.Filter
"""What a request wants: rows written, ids deleted, or whatever a filter matches deleted."""


class Committer:
    """Turns groups of writes into commits of one gallery."""

    def __init__(self, gallery: GalleryStore, match: Match, policy: MaintenancePolicy) -> None:
        """A committer that takes `gallery` over when it prepares: nobody else can commit to it from then on."""
        self._gallery = gallery
        self._owned = False
        self._match = match
        self._policy = policy

    @property
    def spec(self) -> GallerySpec:
        """The gallery's description."""
        return self._gallery.spec

    @property
    def uri(self) -> str:
        """The gallery's dataset."""
        return self._gallery.uri

    @property
    def version(self) -> int:
        """The version last committed."""
        return self._gallery.version

    def prepare(self) -> list[tuple[int, str]]:
        """Take the gallery over and read what the first commit needs to know; see `GalleryStore.prepare`.

        Returns:
            What the newest commits kept of their writes, for `Answers.read_back`.

        A store that takes no writes now (a full disk) can be read all the same: the first commit tries again.
        """
        try:
            self._own()
        except StoreFailure as error:
            _log.warning("gallery %s can be read, but not written to yet: %s", self.spec.name, error)
        self._gallery.prepare()
        return self._gallery.history.notes(NOTE_KEY, commits=answers.READ_BACK)

    def update_spec(self, spec: GallerySpec) -> Commit:
        """Store a changed description; see `GalleryStore.update_spec`."""
        self._own()
        return self._gallery.update_spec(spec)

    def commit(
        self, writes: Sequence[Write], marks: Sequence[Mark]
    ) -> tuple[list[Commit], list[WriteResult | Exception]]:
        """Commit the writes together or, if one is bad, one by one, so that it cannot spoil it for the others.

        Args:
            writes: Oldest first; a delete by filter comes alone, as it has to see everything before it.
            marks: What each of them is known by; kept with the commit.

        Returns:
            The commits made, and for each write what became of it.
        """
        try:
            commit, together = self._attempt(writes, marks)
            return [commit], list(together)
        except (ShardError, ColumnError) as error:
            if len(writes) == 1:
                return [], [error]
            _log.warning("a group of %d writes failed, trying them one by one: %s", len(writes), error)
        commits: list[Commit] = []
        results: list[WriteResult | Exception] = []
        for write, mark in zip(writes, marks, strict=True):
            try:
                commit, alone = self._attempt([write], [mark])
            except (ShardError, ColumnError) as error:
                results.append(error)
            else:
                commits.append(commit)
                results.extend(alone)
        return commits, results

    def lend_stamps(self, rows: int) -> tuple[list[int], Commit]:
        """See `GalleryStore.lend_stamps`."""
        self._own()
        return self._gallery.lend_stamps(rows)

    def commit_fragments(self, fragments: Sequence[str], mark: Mark) -> tuple[int, Commit]:
        """See `GalleryStore.commit_fragments`."""
        self._own()
        return self._gallery.commit_fragments(fragments, note=lambda rows: answers.to_text([(mark, rows)]))

    def compact(self) -> Commit | None:
        """Do one bounded step of compaction, or renew the barrier that holds up the clean-up; None if nothing is due.

        Raises:
            StoreFailure: If the store refused; nothing is lost.
        """
        try:
            self._own()
            renewed = self._gallery.renew_barrier(after=max(1, self._policy.keep_versions))
            return self._compact() if renewed is None else renewed
        except Fenced as error:
            _log.warning("%s", error)
            return None

    def _compact(self) -> Commit | None:
        with told_apart("the compaction failed"):
            row_bytes = layout.row_bytes(self.spec)
            chosen = plan_compaction(self._gallery.fragments(), row_bytes=row_bytes, policy=self._policy)
            return self._gallery.compact(chosen) if chosen else None

    def clean_up(self) -> None:
        """Forget versions that are old, and the oldest of too many; failures are left to the next time."""
        policy = self._policy
        try:
            self._gallery.clean_up(older_than_s=policy.keep_s, keep=policy.keep_versions)
            self._gallery.clean_up(older_than_s=0.0, keep=policy.max_versions)
        except StoreFailure:
            _log.info("the clean-up of gallery %s is put off", self.spec.name)

    def _own(self) -> None:
        if not self._owned:
            self._gallery.take_over()
            self._owned = True

    def _attempt(self, writes: Sequence[Write], marks: Sequence[Mark]) -> tuple[Commit, list[WriteResult]]:
        for write in writes:
            if isinstance(write, Upsert):
                check_vectors(self.spec, write.rows)
        with told_apart("the write failed"):
            self._own()
            group = fold([Delete(self._matching(w)) if isinstance(w, common_pb2.Filter) else w for w in writes])

            def note(existed: frozenset[str]) -> str:
                return answers.to_text(
                    (mark, tally.rows(existed)) for mark, tally in zip(marks, group.tallies, strict=True)
                )

            commit = self._gallery.commit(group.upserts, group.deleted_ids, note=note)
            return commit, [WriteResult(tally.rows(commit.existed), commit.version) for tally in group.tallies]

    def _matching(self, condition: common_pb2.Filter) -> list[str]:
        """Ids of the newest version's rows that match."""
        self._gallery.prepare()
        # On no rows first: a filter that does not fit the schema is refused whatever the gallery holds.
        self._match(pa.Table.from_batches([layout.empty_batch(self.spec)]), condition)
        named = attributes_named(condition)
        columns = ["id", *(attribute.name for attribute in self.spec.attributes if attribute.name in named)]
        ids: list[str] = []
        for rows in self._gallery.scan(columns):
            ids.extend(rows["id"].filter(pa.array(self._match(rows, condition))).to_pylist())
        return ids


def attributes_named(condition: common_pb2.Filter) -> set[str]:
    """Names of all attributes that a filter looks at."""
    node = condition.WhichOneof("node")
    if node in ("all_of", "any_of"):
        parts = getattr(condition, node).filters
        return set().union(*(attributes_named(part) for part in parts))
    if node == "negation":
        return attributes_named(condition.negation)
    return {getattr(condition, node).attribute} if node else set()
