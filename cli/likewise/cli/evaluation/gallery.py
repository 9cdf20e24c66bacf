"""A gallery of a benchmark's images on a running server: made for one evaluation and deleted after it, or kept."""

import contextlib
import secrets
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from likewise.cli.evaluation.served import ATTRIBUTES, KEY, POOLS, check_pools, pool_names
from likewise.client import Client, Gallery, LikewiseError, NotFound
from likewise.export.evaluation.pictures import Picture, find_pictures
from likewise.export.evaluation.problems import EvaluationError, some
from likewise.export.evaluation.task import Benchmark

_CHUNK: Final = 64
_TIMEOUT_S: Final = 600.0

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a benchmark is served.

    Attributes:
        address: Of the server.
        images: Folders of the images.
        name: Of a gallery that is kept; None for one of this evaluation's own.
        encoder: Model family; None for the only one that the server has, or the gallery's own.
    """

    address: str
    images: tuple[Path, ...]
    name: str | None = None
    encoder: str | None = None


@contextlib.contextmanager
def filled_gallery(
    client: Client, place: Place, benchmark: Benchmark, *, needs: Collection[str], progress: Progress
) -> Iterator[Gallery]:
    """The gallery with every image of the benchmark in it.

    Models and images are looked for before anything is made. A gallery without a name of its own is deleted when the
    block ends, however it ends; one with a name is made if it is not there, gets the images that it lacks, and stays.

    Args:
        client: Of the server.
        place: Which gallery, and where the images are.
        benchmark: Its tasks' images are the items.
        needs: Kinds of models that the queries use ("text_encoder", "composer").
        progress: Told what is being done.

    Raises:
        EvaluationError: Models or images are absent, or the gallery is of another kind.
    """
    keys = sorted({key for task in benchmark.tasks for key in task.image_keys()})
    existing = _existing(client, place)
    family = _family(client, place.encoder if existing is None else existing.info().encoder, needs)
    if existing is not None:
        missing = existing.get(keys, attributes=False).missing
        pictures = _pictures(benchmark, missing, place)
        _fill(existing, pictures, benchmark, progress)
        check_pools(existing, pool_names(benchmark.tasks))
        yield existing
        return
    pictures = _pictures(benchmark, keys, place)
    name = place.name or f"eval-{benchmark.name}-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        if place.name is None:
            stack.enter_context(_stop_signals_raise())
            stack.callback(_delete, client, name)
        gallery = client.create_gallery(name, encoder=family, attributes=ATTRIBUTES)
        _fill(gallery, pictures, benchmark, progress)
        check_pools(gallery, pool_names(benchmark.tasks))
        yield gallery


def _existing(client: Client, place: Place) -> Gallery | None:
    if place.name is None:
        return None
    gallery = client.gallery(place.name)
    try:
        info = gallery.info()
    except NotFound:
        return None
    if absent := [name for name in ATTRIBUTES if name not in info.schema]:
        raise EvaluationError(
            f"gallery {place.name!r} has no attribute {absent[0]!r}: only one that `likewise eval --gallery` made can "
            "be measured; give another name"
        )
    if place.encoder is not None and info.encoder != place.encoder:
        raise EvaluationError(
            f"gallery {place.name!r} is encoded by {info.encoder!r}, not {place.encoder!r}; leave --encoder out, or "
            "give another name"
        )
    return gallery


def _pictures(benchmark: Benchmark, keys: Sequence[str], place: Place) -> dict[str, Picture]:
    if keys and not place.images:
        raise EvaluationError(f"{len(keys):,} images have to be ingested: give their folder with --images")
    return find_pictures(benchmark, keys, place.images)


def _family(client: Client, wanted: str | None, needs: Collection[str]) -> str:
    models = client.models()
    families = sorted({model.family for model in models if model.kind == "image_encoder"})
    if wanted is None:
        if len(families) != 1:
            known = ", ".join(families) or "none"
            raise EvaluationError(f"the server has image encoders of the models {known}: say which with --encoder")
        wanted = families[0]
    if wanted not in families:
        raise EvaluationError(
            f"the server has no image encoder {wanted!r}, only {some(families)}; `likewise model list` shows them"
        )
    kinds = {model.kind for model in models if model.family == wanted}
    if missing := sorted(kind for kind in needs if kind not in kinds):
        rest = "image or text" if missing == ["composer"] else "image"
        raise EvaluationError(
            f"the models {wanted!r} of the server have no {missing[0].replace('_', ' ')}: measure them with "
            f"--composer {rest}"
        )
    return wanted


def _fill(gallery: Gallery, pictures: Mapping[str, Picture], benchmark: Benchmark, progress: Progress) -> None:
    pools: dict[str, list[str]] = {}
    for pool, name in pool_names(benchmark.tasks).items():
        for key in pool:
            pools.setdefault(key, []).append(name)
    keys = list(pictures)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        progress(f"ingesting {len(keys):,} images", start / len(keys))
        rows = [{KEY: key, POOLS: pools.get(key, [])} for key in chunk]
        images = [pictures[key].read() for key in chunk]
        try:
            gallery.upsert(chunk, images=images, attributes=rows, progress=False, timeout=_TIMEOUT_S)
        except LikewiseError as error:
            item = error.upsert.item if error.upsert is not None else ""
            if item in pictures:
                raise EvaluationError(f"{pictures[item].path}: refused by the server: {error}") from error
            raise


def _delete(client: Client, name: str) -> None:
    try:
        client.delete_gallery(name, timeout=60)
    except NotFound:
        pass  # it was never made
    except LikewiseError as error:
        raise EvaluationError(
            f"gallery {name!r} could not be deleted ({error}); delete it with `likewise gallery delete {name} --yes`"
        ) from error


@contextlib.contextmanager
def _stop_signals_raise() -> Iterator[None]:
    """SIGTERM ends the block like an exception, so that the gallery goes too; Python's default runs nothing more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
