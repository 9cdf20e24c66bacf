"""Where a Lance dataset keeps what on a local folder: for flushing commits, and for telling a damaged one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_NEWEST_MANIFEST: Final = (1 << 64) - 1
_MANIFEST_END: Final = b"LANC"


class DatasetFiles:
    """Paths of one dataset's files, to be flushed; none without a folder.

    Args:
        folder: Of the dataset; None for an object store, or where nothing is to be flushed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def rows_of(self, fragments: Sequence[Any]) -> set[Path]:
        """Files with the rows of `lance.FragmentMetadata`."""
        if self._folder is None:
            return set()
        return {self._folder / "data" / file.path for fragment in fragments for file in fragment.files}

    def deletions_of(self, fragments: Sequence[Any]) -> set[Path]:
        """Files that say which rows of `lance.FragmentMetadata` are retired."""
        if self._folder is None:
            return set()
        return {self._folder / fragment.deletion_file.path(fragment.id) for fragment in fragments}

    def all_rows(self) -> set[Path]:
        """Every file with rows, of whatever version."""
        return set() if self._folder is None else set((self._folder / "data").iterdir())

    def manifests(self, after: int, until: int) -> set[Path]:
        """Manifests of the versions after `after` up to and with `until`."""
        if self._folder is None:
            return set()
        # Lance counts manifest names down, so that the newest is listed first.
        names = (f"{_NEWEST_MANIFEST - version:020d}.manifest" for version in range(after + 1, until + 1))
        return {self._folder / "_versions" / name for name in names}

    def tag(self, name: str) -> set[Path]:
        """The file of a tag."""
        return set() if self._folder is None else {self._folder / "_refs" / "tags" / f"{name}.json"}


def damage(folder: Path) -> str:
    """What a power loss in the middle of a commit did to a dataset's newest manifest, "" if it is whole."""
    # Names count down, so the newest manifest is the first.
    newest = min(folder.glob("_versions/*.manifest"), default=None)
    if newest is None or newest.read_bytes().endswith(_MANIFEST_END):
        return ""
    version = _NEWEST_MANIFEST - int(newest.stem)
    return (
        f"the manifest of version {version} of {folder.stem!r} is cut short, as by a power loss during its commit; "
        f"to go on from version {version - 1}, move {folder.name}/_versions/{newest.name} away"
    )
