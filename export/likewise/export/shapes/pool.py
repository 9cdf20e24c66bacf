"""The training pool: clusters of near-alike scenes with captions, graphs (read from them) and pixels.

Scenes come in clusters (a scene and edits of it), as frames of one film do, so that mining finds pairs which
differ in one thing only. Mining itself sees captions, never the scenes.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from likewise.export.shapes import captions
from likewise.export.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MAX_THINGS,
    SHAPES,
    SIZES,
    TEXTURES,
    THING_ATTRIBUTES,
    VALUES,
    Pair,
    Scene,
    Thing,
    add_thing,
    edit_thing,
    redraw,
    render,
    sample_scene,
    sample_thing,
)

I8 = npt.NDArray[np.int8]
RENDER_SIZES: Final = (96, 128, 192)
VARIANTS: Final = 5
_CHUNK: Final = 250
_EXCHANGES: Final = 3  # a cluster


@dataclass(frozen=True, slots=True)
class GraphArrays:
    """Graphs of n captions as columns; -1 stands for what a text does not say.

    Attributes:
        things: (n, 3, 4) int8: shape, colour, texture, size codes of each node; a row of -1 where there is no
            node.
        background: (n,) int8.
        main: (n,) int8, the node that attribute conditions speak of, -1 where none stands out.
        relation: (n,) int8, relation of the first to the second node, -1 where unsaid.
    """

    things: I8
    background: I8
    main: I8
    relation: I8

    def take(self, rows: npt.NDArray[np.int64]) -> "GraphArrays":
        """The rows at the given positions."""
        return GraphArrays(self.things[rows], self.background[rows], self.main[rows], self.relation[rows])


@dataclass(frozen=True, slots=True)
class Pool:
    """Rendered scenes with their texts.

    Attributes:
        images: (n, 64, 64, 3) uint8.
        full: n full captions.
        variants: n lists of ``VARIANTS`` captions, the text encoder's training text.
        graphs: Graphs of the full captions.
    """

    images: npt.NDArray[np.uint8]
    full: list[str]
    variants: list[list[str]]
    graphs: GraphArrays


def to_arrays(graphs: Sequence[captions.Graph]) -> GraphArrays:
    """Code parsed graphs as columns."""
    n = len(graphs)
    things = np.full((n, MAX_THINGS, 4), -1, np.int8)
    background = np.full(n, -1, np.int8)
    main = np.full(n, -1, np.int8)
    relation = np.full(n, -1, np.int8)
    for i, graph in enumerate(graphs):
        for j, node in enumerate(graph.nodes[:MAX_THINGS]):
            things[i, j] = (
                SHAPES.index(node.shape) if node.shape else -1,
                COLOURS.index(node.colour) if node.colour else -1,
                TEXTURES.index(node.texture) if node.texture else -1,
                SIZES.index(node.size) if node.size else -1,
            )
        if graph.background:
            background[i] = BACKGROUNDS.index(graph.background)
        if graph.main is not None:
            main[i] = graph.main
        if graph.relations and graph.relations[0][0] == 0:
            relation[i] = captions.RELATIONS.index(graph.relations[0][1])
    return GraphArrays(things, background, main, relation)


def word_targets(graphs: GraphArrays) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which words, and pairs of words about one object, each caption holds (Li et al., Learning Visual N-Grams, 2017).

    Returns:
        (n, w) bool, and (w,) bool which of the words and pairs occur at all: a pair that no caption holds
        teaches nothing, and counting it as always false would teach that held-out pairs do not exist.
    """
    things = graphs.things.astype(np.int64)
    present = things[:, :, 0] >= 0
    columns = [graphs.background[:, None] == np.arange(len(BACKGROUNDS))]
    sizes = [len(VALUES[name]) for name in THING_ATTRIBUTES]
    for a, first in enumerate(sizes):
        held = (things[:, :, a, None] == np.arange(first)) & present[:, :, None]
        columns.append(held.any(1))
        for b in range(a + 1, len(sizes)):
            pair = things[:, :, a] * sizes[b] + things[:, :, b]
            both = (pair[:, :, None] == np.arange(first * sizes[b])) & present[:, :, None]
            columns.append(both.any(1))
    targets = np.concatenate(columns, 1)
    return targets, np.asarray(targets.any(0), np.bool_)


def sample_cluster(rng: np.random.Generator, pairs: frozenset[Pair]) -> list[Scene]:
    """A scene and some fifteen edits of it, each drawn anew with small drift; every pair shown is in ``pairs``.

    Some edits only exchange the colours of two objects: the same words, bound otherwise (Yuksekgonul et al., When
    and Why Vision-Language Models Behave like Bags-of-Words, 2023).
    """
    ordered = sorted(pairs)
    base = sample_scene(rng, ordered)
    edits: list[Scene | None] = [base]
    focus = base.main if base.main is not None else 0
    for _ in range(2):
        edits.append(recolour(rng, base, focus, pairs))
        edits.append(reshape(rng, base, focus, pairs))
        edits.append(replace(base, background=other(rng, BACKGROUNDS, base.background)))
        texture = other(rng, TEXTURES, base.things[focus].texture)
        edits.append(edit_thing(base, focus, texture=texture))
    if len(base.things) == 1:
        edits.append(edit_thing(base, 0, size=other(rng, SIZES, base.things[0].size)))
    else:
        minor = int(rng.choice([i for i in range(len(base.things)) if i != focus]))
        edits += [recolour(rng, base, minor, pairs), reshape(rng, base, minor, pairs)]
    if len(base.things) < MAX_THINGS:
        added: Scene | None = None
        for _ in range(2):
            thing = sample_thing(rng, ordered, size="small")
            grown = None if thing.pair in {t.pair for t in base.things} else add_thing(rng, base, thing)
            edits.append(grown)
            added = grown or added
        if added is not None:
            last = len(added.things) - 1
            edits += [recolour(rng, added, last, pairs), reshape(rng, added, last, pairs)]
            edits += [
                replace(added, background=other(rng, BACKGROUNDS, base.background)),
                recolour(rng, added, focus, pairs),
            ]
    crowded = [edit for edit in edits if edit is not None and len(edit.things) > 1]
    edits += [exchange(rng, crowded[i], pairs) for i in rng.permutation(len(crowded))[:_EXCHANGES].tolist()]
    return [base, *(redraw(rng, edit) for edit in edits[1:] if edit is not None)]


def exchange(rng: np.random.Generator, scene: Scene, pairs: frozenset[Pair]) -> Scene | None:
    """Two objects of different shape with their colours exchanged, pairs in ``pairs``; None if there are none."""
    couples = [(i, j) for i in range(len(scene.things)) for j in range(i)]
    for k in rng.permutation(len(couples)).tolist():
        i, j = couples[k]
        first, second = scene.things[i], scene.things[j]
        if first.shape == second.shape or first.colour == second.colour:
            continue
        swapped = edit_thing(edit_thing(scene, i, colour=second.colour), j, colour=first.colour)
        found = {thing.pair for thing in swapped.things}
        if found <= pairs and len(found) == len(swapped.things):
            return swapped
    return None


def recolour(rng: np.random.Generator, scene: Scene, index: int, pairs: frozenset[Pair]) -> Scene | None:
    """Another colour for one object, its pair in ``pairs`` and new to the scene; None if there is none."""
    return _repair(rng, scene, index, pairs, "colour", COLOURS)


def reshape(rng: np.random.Generator, scene: Scene, index: int, pairs: frozenset[Pair]) -> Scene | None:
    """Another shape for one object, its pair in ``pairs`` and new to the scene; None if there is none."""
    return _repair(rng, scene, index, pairs, "shape", SHAPES)


def _repair(
    rng: np.random.Generator,
    scene: Scene,
    index: int,
    pairs: frozenset[Pair],
    attribute: str,
    values: Sequence[str],
) -> Scene | None:
    present = {thing.pair for thing in scene.things}
    thing: Thing = scene.things[index]
    for value in rng.permutation(np.asarray(values)):
        changed = replace(thing, **{attribute: str(value)})  # type: ignore[arg-type]
        if changed.pair in pairs and changed.pair not in present:
            return edit_thing(scene, index, **{attribute: str(value)})
    return None


def other(rng: np.random.Generator, values: Sequence[str], current: str) -> str:
    """A value that differs from ``current``."""
    rest = [value for value in values if value != current]
    return rest[rng.integers(len(rest))]


def build_pool(
    seed: int,
    clusters: int,
    pairs: frozenset[Pair],
    *,
    workers: int = 2,
    progress: Callable[[float], None] | None = None,
) -> Pool:
    """Sample, caption and render ``clusters`` clusters; the same arguments give the same pool.

    Args:
        seed: First seed; cluster i uses the stream (seed, i), whatever the number of workers.
        clusters: Number of clusters, some 14 scenes each.
        pairs: The (shape, colour) pairs that may appear.
        workers: Processes that render.
        progress: Called with the share done, in [0, 1].
    """
    jobs = [(seed, start, min(start + _CHUNK, clusters), pairs) for start in range(0, clusters, _CHUNK)]
    parts = []
    with multiprocessing.get_context("fork").Pool(workers) as processes:
        for i, part in enumerate(processes.imap(_build_chunk, jobs)):
            parts.append(part)
            if progress is not None:
                progress((i + 1) / len(jobs))
    full = [text for part in parts for text in part[1]]
    variants = [texts for part in parts for texts in part[2]]
    images = np.concatenate([part[0] for part in parts])
    return Pool(images, full, variants, to_arrays([captions.parse(text) for text in full]))


def _build_chunk(
    job: tuple[int, int, int, frozenset[Pair]],
) -> tuple[npt.NDArray[np.uint8], list[str], list[list[str]]]:
    seed, start, stop, pairs = job
    images, full, variants = [], [], []
    for cluster in range(start, stop):
        rng = np.random.default_rng((seed, cluster))
        for scene in sample_cluster(rng, pairs):
            picture = render(scene, int(RENDER_SIZES[rng.integers(3)]))
            images.append(np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)))
            full.append(captions.full_caption(scene))
            variants.append([captions.vary_caption(rng, scene) for _ in range(VARIANTS)])
    return np.stack(images), full, variants
