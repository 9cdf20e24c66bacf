"""Keeping a gallery's dataset quick to open and small on disk: which files to merge, when to forget old versions.

Every commit adds a file and a manifest that lists all files, so a commit's cost grows with the number of files (2 ms
at 300, 7 ms at 1,500). Files are merged in tiers, eight neighbours of about one size into one of the next, so that a
row is rewritten once a tier, and never more than a bounded number of bytes at a time, so that writes wait only briefly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from likewise.shards.gallery_store import Fragment


@dataclass(frozen=True, slots=True)
class MaintenancePolicy:
    """When and how much.

    Attributes:
        fan_in: Neighbouring files of one tier that are merged into one; each tier is `fan_in` times the one below.
        tier_rows: Files of up to so many rows are in the lowest tier.
        step_bytes: Most bytes rewritten in one step.
        deleted_share: A file of which more than this share is retired is rewritten.
        keep_s: Versions are kept at least so many seconds, for shards that catch up and readers that are slow.
        keep_versions: This many newest versions are kept however old.
        max_versions: Beyond so many the oldest go however young.
        clean_up_every: Versions between two clean-ups; each reads all manifests (0.45 ms a version).
        busy_every: Commits without a pause after which one step is done all the same.
    """

    fan_in: int = 8
    tier_rows: int = 64
    step_bytes: int = 64 << 20
    deleted_share: float = 0.25
    keep_s: float = 600.0
    keep_versions: int = 100
    max_versions: int = 2_000
    clean_up_every: int = 200
    busy_every: int = 64


def plan_compaction(fragments: Sequence[Fragment], *, row_bytes: int, policy: MaintenancePolicy) -> list[int]:
    """Ids of the neighbouring fragments that are worth merging next, [] if none are.

    Args:
        fragments: In the dataset's order.
        row_bytes: About how many bytes a row takes.
        policy: Limits.
    """
    most_rows = max(1, policy.step_bytes // row_bytes)
    tiers = [_tier(entry, policy) for entry in fragments]
    for tier in sorted(set(tiers)):
        for run in _runs(fragments, tiers, tier, most_rows):
            sizes = [entry.rows - entry.deleted for entry in run]
            # One large file among crumbs is left alone: it would be rewritten again and again for little.
            if len(run) >= policy.fan_in and 2 * max(sizes) <= sum(sizes):
                return [entry.id for entry in run]
    for entry in fragments:
        if entry.deleted > policy.deleted_share * entry.rows:
            return [entry.id]
    return []


def _tier(entry: Fragment, policy: MaintenancePolicy) -> int:
    tier, limit = 0, policy.tier_rows
    while entry.rows - entry.deleted > limit:
        tier, limit = tier + 1, limit * policy.fan_in
    return tier


def _runs(fragments: Sequence[Fragment], tiers: Sequence[int], tier: int, most_rows: int) -> list[list[Fragment]]:
    """Stretches of neighbours of at most that tier, each cut where it would exceed `most_rows`."""
    runs: list[list[Fragment]] = []
    run: list[Fragment] = []
    rows = 0
    for entry, own in zip(fragments, tiers, strict=True):
        live = entry.rows - entry.deleted
        if own > tier or rows + live > most_rows:
            runs.append(run)
            run, rows = [], 0
        if own <= tier and live <= most_rows:
            run.append(entry)
            rows += live
    runs.append(run)
    return runs
