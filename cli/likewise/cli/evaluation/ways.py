"""From options to rankers: out of feature files, or through a server."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from likewise.cli.evaluation.gallery import Place, filled_gallery
from likewise.cli.evaluation.served import SERVED, Method, ServedRanker, pool_names
from likewise.client import Client, Gallery
from likewise.export.evaluation.composers import Composer, make_composer
from likewise.export.evaluation.crops import canonical_key
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import Features, read_features
from likewise.export.evaluation.problems import EvaluationError, first_repeated
from likewise.export.evaluation.ranking import Ranker
from likewise.export.evaluation.task import MODES, Benchmark, Mode
from likewise.export.manifest import ManifestError

TIMEOUT_S: Final = 60.0
_METHODS: Final[tuple[Method, ...]] = ("served", "image", "text")

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class FeatureWay:
    """Feature files and the composers to try on them.

    Attributes:
        images: Features of images.
        texts: Features of conditions; None if no composer reads them.
        composers: At least one.
    """

    images: Features
    texts: Features | None
    composers: tuple[Composer, ...]

    @contextlib.contextmanager
    def rankers(self, benchmark: Benchmark, progress: Progress) -> Iterator[list[Ranker]]:
        """One ranker a composer."""
        yield [FeatureRanker(self.images, self.texts, composer) for composer in self.composers]

    def gallery_keys(self) -> Sequence[str]:
        """Every image there is."""
        return sorted(self.images.rows)


@dataclass(frozen=True, slots=True)
class ServerWay:
    """A server and what of its answers is measured."""

    place: Place
    methods: tuple[Method, ...]

    @contextlib.contextmanager
    def rankers(self, benchmark: Benchmark, progress: Progress) -> Iterator[list[Ranker]]:
        """One ranker a method, over one gallery that lives as long as the block."""
        with (
            Client(self.place.address, timeout=TIMEOUT_S) as client,
            filled_gallery(client, self.place, benchmark, needs=self._needs(benchmark), progress=progress) as gallery,
        ):
            yield [self._ranker(gallery, benchmark, method, progress) for method in self.methods]

    def gallery_keys(self) -> Sequence[str]:
        """Names of every image in the folders, without their endings; COCO's without leading zeros."""
        names = {file.stem for folder in self.place.images if folder.is_dir() for file in folder.rglob("*.jpg")}
        return sorted(str(int(name)) if len(name) == 12 and name.isdecimal() else name for name in names)

    def _needs(self, benchmark: Benchmark) -> set[str]:
        if not any(texts for task in benchmark.tasks for texts in task.conditions):
            return set()
        kinds = {"served": {"text_encoder", "composer"}, "text": {"text_encoder"}, "image": set[str]()}
        return set().union(*(kinds[method] for method in self.methods))

    def _ranker(self, gallery: Gallery, benchmark: Benchmark, method: Method, progress: Progress) -> ServedRanker:
        total, done = sum(len(task.ids) for task in benchmark.tasks), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(f"{method}: searching", done / total)

        kept = {"server": self.place.address, "encoder": gallery.info().encoder}
        return ServedRanker(gallery, method, pool_names(benchmark.tasks), facts=dict(kept), advance=advance)


Way = FeatureWay | ServerWay


def choose_way(
    *,
    image_features: Path | None,
    text_features: Path | None,
    composers: Sequence[str] | None,
    repository: Path | None,
    server: str | None,
    images: Sequence[Path] | None,
    gallery: str | None,
    encoder: str | None,
) -> Way:
    """Read what the options name.

    Raises:
        typer.BadParameter: Options of both ways, or of none, are given.
        EvaluationError: A file is not what it should be, or there is no such composer.
    """
    if (server is None) == (image_features is None):
        raise typer.BadParameter(
            "give either --image-features (and --text-features) or --server (and --images): features already computed, "
            "or a server that computes them"
        )
    if repeated := first_repeated(list(composers or ())):
        raise typer.BadParameter(f"--composer {repeated!r} is given twice")
    if server is not None:
        unused = {"--text-features": text_features, "--repository": repository}
        _refuse(unused, "belongs to --image-features, not to --server")
        place = Place(server, tuple(images or ()), gallery, encoder)
        return ServerWay(place, tuple(_method(name) for name in composers or (SERVED,)))
    _refuse({"--images": images, "--gallery": gallery, "--encoder": encoder}, "belongs to --server")
    assert image_features is not None
    if not composers:
        raise typer.BadParameter("--composer is missing: image, text, sum:W, unit-sum:W or a composer's name")
    made = tuple(make_composer(name, repository) for name in composers)
    reads_text = [composer.name for composer in made if composer.reads_text]
    if reads_text and text_features is None:
        raise typer.BadParameter(f"composer {reads_text[0]!r} reads conditions: give --text-features")
    texts = read_features(text_features, key="text") if text_features is not None and reads_text else None
    return FeatureWay(read_features(image_features, canonical=canonical_key), texts, made)


def mode_of(name: str) -> Mode:
    """A mode from its option.

    Raises:
        typer.BadParameter: There is no such mode.
    """
    for mode in MODES:
        if mode and name == mode:
            return mode
    if name != "none":
        raise typer.BadParameter(f"--mode must be none, focus or change, got {name!r}")
    return ""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What an evaluation refuses ends the command with status 1 and one line."""
    try:
        yield
    except (EvaluationError, ManifestError) as error:
        sys.stderr.write(f"likewise eval: {error}\n")
        raise typer.Exit(1) from error


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error; called with what is being done and the share done, in [0, 1]."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task("reading", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)


def _method(name: str) -> Method:
    for method in _METHODS:
        if name == method:
            return method
    raise typer.BadParameter(
        f"--composer {name!r} is not something a server answers: with --server it is served (reference and conditions, "
        "composed by the server), image or text"
    )


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"{name} {why}")
