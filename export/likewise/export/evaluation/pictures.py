"""Where the images of a benchmark lie, and their bytes; crops are cut on the way."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from likewise.export.evaluation.crops import Box, crop_bytes, split_key
from likewise.export.evaluation.problems import EvaluationError, some
from likewise.export.evaluation.task import Benchmark


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a benchmark: its file, and the box that is cut out of it, if any."""

    key: str
    path: Path
    box: Box | None = None

    def read(self) -> bytes:
        """The bytes of the file as they are, or the crop as PNG.

        Raises:
            EvaluationError: The file cannot be read.
        """
        if self.box is not None:
            return crop_bytes(self.path, self.box)
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise EvaluationError(f"{self.path}: cannot be read: {error.strerror or error}") from error


def find_pictures(benchmark: Benchmark, keys: Iterable[str], folders: Sequence[Path]) -> dict[str, Picture]:
    """Every key's picture.

    Args:
        benchmark: Says where files lie below an image folder.
        keys: Repeats allowed.
        folders: Looked through in this order.

    Raises:
        EvaluationError: A folder or a file is absent; nothing was read yet.
    """
    for folder in folders:
        if not folder.is_dir():
            raise EvaluationError(f"no folder {folder}: give --images the folder that the images lie in")
    found: dict[str, Picture] = {}
    absent: list[str] = []
    for key in dict.fromkeys(keys):
        image, box = split_key(key) if benchmark.crop_patterns else (key, None)
        names = _names(benchmark, image, crop=box is not None)
        path = next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
        if path is None:
            absent.append(names[0])
        else:
            found[key] = Picture(key, path, box)
    if absent:
        where = " or ".join(map(str, folders))
        raise EvaluationError(
            f"{len(absent):,} of {len(absent) + len(found):,} images that the annotations name are not in {where}: "
            f"{some(dict.fromkeys(absent))}; add them, or give the folder that holds them with --images"
        )
    return found


def _names(benchmark: Benchmark, key: str, *, crop: bool) -> list[str]:
    if key in benchmark.files:
        return [benchmark.files[key]]
    patterns = benchmark.crop_patterns if crop else benchmark.patterns
    first = dict(zip("abc", f"{key:_<3}", strict=False))
    return [pattern.format(key=key, coco=key.zfill(12), **first) for pattern in patterns]
