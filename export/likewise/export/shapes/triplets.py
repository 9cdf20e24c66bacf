"""Mines (reference, condition, target, hard negatives) from caption graphs, after GeneCIS section 4.

GeneCIS pairs images whose captions share a subject and differ in the object. Captions here are richer, so all
four tasks can be mined: two scenes whose graphs differ in one node or in the background give "change", two
that agree in one and differ in all else give "focus"; scenes that break just what the condition asks are the
hard negatives.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.shapes.conditions import KINDS, Condition, phrase
from likewise.export.shapes.pool import GraphArrays
from likewise.export.shapes.world import COLOURS, SHAPES, TEXTURES, THING_ATTRIBUTES, VALUES

NEGATIVES: Final = 6
PHRASES: Final = 3
_TRIES: Final = 24

Code = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Triplets:
    """Mined triplets as columns, sorted by reference.

    Attributes:
        kind: (m,) int8, index into ``KINDS``.
        reference: (m,) int64 rows of the pool.
        target: (m,) int64.
        negatives: (m, NEGATIVES) int64, scenes that break the condition; -1 where fewer were found.
        texts: m lists of ``PHRASES`` wordings of the condition.
        attribute: (m,) int8: 0-3 an attribute of the main object, 4 the background, -1 for the object kinds.
        wanted: (m, 4) int8, for the object kinds the attributes that an object must have, -1 where any will
            do.
    """

    kind: npt.NDArray[np.int8]
    reference: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]
    texts: list[list[str]]
    attribute: npt.NDArray[np.int8]
    wanted: npt.NDArray[np.int8]


def _mask(node: Code, attribute: int) -> Code:
    masked = list(node)
    masked[attribute] = -1
    return (masked[0], masked[1], masked[2], masked[3])


class _Index:
    """Looks up scenes that equal a graph but for one node or the background."""

    def __init__(self, graphs: GraphArrays) -> None:
        self.nodes: list[list[Code]] = []
        self.background = graphs.background.tolist()
        self.main: list[int] = graphs.main.tolist()
        self.by_rest: dict[tuple[int, tuple[Code, ...]], list[tuple[int, Code]]] = defaultdict(list)
        self.by_mask: dict[tuple[int, tuple[Code, ...], int, Code], list[tuple[int, int]]] = defaultdict(list)
        self.by_nodes: dict[tuple[Code, ...], list[int]] = defaultdict(list)
        self.by_value: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.by_object: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for row, things in enumerate(graphs.things.tolist()):
            nodes: list[Code] = [(t[0], t[1], t[2], t[3]) for t in things if t[0] >= 0]
            self.nodes.append(nodes)
            ordered = tuple(sorted(nodes))
            self.by_nodes[ordered].append(row)
            for i, node in enumerate(ordered):
                rest = ordered[:i] + ordered[i + 1 :]
                if rest:
                    self.by_rest[self.background[row], rest].append((row, node))
                for a in range(4):
                    self.by_mask[self.background[row], rest, a, _mask(node, a)].append((row, node[a]))
            for node in nodes:
                self.by_object[node[:3]].append(row)
            if self.main[row] >= 0:
                for attribute, value in enumerate((*nodes[self.main[row]], self.background[row])):
                    self.by_value[attribute, value].append(row)

    def main_node(self, row: int) -> Code:
        main: int = self.main[row]
        return self.nodes[row][main]

    def variants(self, row: int, node: Code, attribute: int) -> list[tuple[int, int]]:
        """Scenes equal to ``row`` but for one attribute of ``node``, with the value that they hold instead."""
        rest = list(self.nodes[row])
        rest.remove(node)
        found = self.by_mask[self.background[row], tuple(sorted(rest)), attribute, _mask(node, attribute)]
        return [(other, value) for other, value in found if value != node[attribute]]

    def grounds(self, row: int) -> list[int]:
        """Scenes with the same objects over another background."""
        return [
            other
            for other in self.by_nodes[tuple(sorted(self.nodes[row]))]
            if self.background[other] != self.background[row]
        ]

    def additions(self, row: int) -> list[tuple[int, Code]]:
        """Scenes equal to ``row`` plus one object, with that object."""
        return self.by_rest[self.background[row], tuple(sorted(self.nodes[row]))]


def mine(seed: int, graphs: GraphArrays, references: Iterable[int], *, per_kind: int = 2) -> Triplets:
    """Mine up to ``per_kind`` triplets of each kind for each reference.

    Args:
        seed: Draws and wordings; the same arguments give the same triplets.
        graphs: Graphs of the pool's full captions.
        references: Rows to use as references.
        per_kind: Triplets of a kind per reference, at most.
    """
    rng = np.random.default_rng(seed)
    index = _Index(graphs)
    rows: list[tuple[int, int, int, list[int], list[str], int, Code]] = []
    for reference in references:
        miners = (_focus_attribute, _change_attribute, _focus_object, _change_object)
        for kind, miner in enumerate(miners):
            for _ in range(per_kind):
                found = miner(rng, index, reference)
                if found is None:
                    continue
                condition, target, negatives, attribute, wanted = found
                if len(negatives) < 2:
                    continue
                texts = [phrase(rng, condition) for _ in range(PHRASES)]
                rows.append((kind, reference, target, negatives, texts, attribute, wanted))
    negative_array = np.full((len(rows), NEGATIVES), -1, np.int64)
    for i, row in enumerate(rows):
        chosen = list(dict.fromkeys(row[3]))
        if len(chosen) > NEGATIVES:
            chosen = [chosen[j] for j in rng.permutation(len(chosen))[:NEGATIVES]]
        negative_array[i, : len(chosen)] = chosen
    return Triplets(
        kind=np.asarray([r[0] for r in rows], np.int8),
        reference=np.asarray([r[1] for r in rows], np.int64),
        target=np.asarray([r[2] for r in rows], np.int64),
        negatives=negative_array,
        texts=[r[4] for r in rows],
        attribute=np.asarray([r[5] for r in rows], np.int8),
        wanted=np.asarray([r[6] for r in rows], np.int8).reshape(-1, 4),
    )


_Found = tuple[Condition, int, list[int], int, Code]
_ANY: Final[Code] = (-1, -1, -1, -1)
_NAMES: Final = (*THING_ATTRIBUTES, "background")


def _focus_attribute(rng: np.random.Generator, index: _Index, row: int) -> _Found | None:
    if index.main[row] < 0:
        return None
    attribute = int(rng.choice(5, p=(0.24, 0.24, 0.24, 0.08, 0.2)))
    main = index.main_node(row)
    values = (*main, index.background[row])
    candidates = index.by_value[attribute, values[attribute]]
    target = -1
    for attempt in range(_TRIES):
        other = candidates[rng.integers(len(candidates))]
        theirs = (*index.main_node(other), index.background[other])
        shared = sum(theirs[i] == values[i] for i in (0, 1, 2, 4) if i != attribute)
        if shared == 0 or (shared == 1 and attempt > _TRIES // 2 and other != row):
            target = other
            break
    if target < 0:
        return None
    return (
        Condition("focus_attribute", _NAMES[attribute]),
        target,
        _broken(index, (row, target), attribute),
        attribute,
        _ANY,
    )


def _broken(index: _Index, rows: tuple[int, ...], attribute: int) -> list[int]:
    """Scenes that equal one of ``rows`` but for the given attribute of the main object (4: the background)."""
    found: list[int] = []
    for row in rows:
        if attribute == 4:
            found += index.grounds(row)
            continue
        found += [other for other, _ in index.variants(row, index.main_node(row), attribute)]
    return found


def _change_attribute(rng: np.random.Generator, index: _Index, row: int) -> _Found | None:
    if index.main[row] < 0:
        return None
    main = index.main_node(row)
    # Attributes first, then a scene: colours and shapes have more values and would crowd out the rest.
    attribute = int(rng.choice(5, p=(0.25, 0.25, 0.2, 0.08, 0.22)))
    if attribute == 4:
        options = [(other, index.background[other]) for other in index.grounds(row)]
    else:
        options = [(r, v) for r, v in index.variants(row, main, attribute) if index.main[r] >= 0]
    if not options:
        return None
    target, value = options[rng.integers(len(options))]
    negatives = [row, *(other for other, theirs in options if theirs != value)]
    for a in (0, 1, 2, 4):
        if a != attribute:
            negatives += _broken(index, (target,), a)
    name = _NAMES[attribute]
    return Condition("change_attribute", name, VALUES[name][value]), target, negatives, attribute, _ANY


def _focus_object(rng: np.random.Generator, index: _Index, row: int) -> _Found | None:
    nodes = index.nodes[row]
    node = nodes[rng.integers(len(nodes))]
    candidates = index.by_object[node[:3]]
    mine_pairs = {n[:2] for n in nodes} - {node[:2]}
    target = -1
    for _ in range(_TRIES):
        other = candidates[rng.integers(len(candidates))]
        if index.background[other] == index.background[row]:
            continue
        if not mine_pairs & {n[:2] for n in index.nodes[other]} and other != row:
            target = other
            break
    if target < 0:
        return None
    negatives: list[int] = []
    for scene in (row, target):
        held = next(n for n in index.nodes[scene] if n[:3] == node[:3])
        negatives += [other for a in (0, 1) for other, _ in index.variants(scene, held, a)]
    noun = _noun(
        rng,
        node,
        unique_shape=sum(n[0] == node[0] for n in nodes) == 1,
        unique_colour=sum(n[1] == node[1] for n in nodes) == 1,
    )
    return Condition("focus_object", noun=noun), target, negatives, -1, (node[0], node[1], -1, -1)


def _noun(rng: np.random.Generator, node: Code, *, unique_shape: bool, unique_colour: bool) -> str:
    shape, colour = SHAPES[node[0]], COLOURS[node[1]]
    draw = rng.random()
    if unique_shape and draw < 0.6:
        return shape
    if unique_colour and draw < 0.7:
        return f"{colour} object"
    if draw < 0.92:
        return f"{colour} {shape}"
    return f"{TEXTURES[node[2]]} {colour} {shape}"


def _change_object(rng: np.random.Generator, index: _Index, row: int) -> _Found | None:
    additions = index.additions(row)
    if not additions:
        return None
    target, node = additions[rng.integers(len(additions))]
    draw = rng.random()
    wanted: Code = (node[0], -1, -1, -1)
    noun = SHAPES[node[0]]
    if draw > 0.35:
        wanted, noun = (node[0], node[1], -1, -1), f"{COLOURS[node[1]]} {noun}"
    if draw > 0.85:
        wanted, noun = (*wanted[:2], node[2], -1), f"{TEXTURES[node[2]]} {noun}"
    negatives = [row]
    for other, code in additions:
        if any(w not in (-1, c) for w, c in zip(wanted, code, strict=True)):
            negatives.append(other)
    negatives += index.grounds(target)
    if index.main[target] >= 0:
        main = index.main_node(target)
        if main != node:
            negatives += [other for a in (0, 1, 2) for other, _ in index.variants(target, main, a)]
    return Condition("change_object", noun=noun), target, negatives, -1, wanted


def satisfied(
    triplets: Triplets, queries: npt.NDArray[np.int64], graphs: GraphArrays, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which candidates may answer which queries, judged generously from the graphs.

    Used to leave such candidates out of the negatives; a candidate that this calls satisfied but that was
    mined as a hard negative stays one.

    Args:
        triplets: The mined triplets.
        queries: (q,) rows of ``triplets``.
        graphs: Graphs of the pool.
        rows: (c,) candidate rows of the pool.

    Returns:
        (q, c) bool.
    """
    reference, target = graphs.take(triplets.reference[queries]), graphs.take(triplets.target[queries])
    candidates = graphs.take(rows)
    result = np.zeros((len(queries), len(rows)), np.bool_)
    attribute = triplets.attribute[queries]
    kind = triplets.kind[queries]
    candidate_main, target_main = main_values(candidates), main_values(target)
    nothing_stands_out = candidates.main < 0

    for a in range(5):
        picked = np.flatnonzero((kind == KINDS.index("focus_attribute")) & (attribute == a))
        same = target_main[picked, a][:, None] == candidate_main[None, :, a]
        result[picked] = same | nothing_stands_out[None]
    picked = np.flatnonzero(kind == KINDS.index("change_attribute"))
    same_all = (target_main[picked][:, None] == candidate_main[None]).all(-1)
    result[picked] = same_all

    picked = np.flatnonzero(kind >= KINDS.index("focus_object"))
    wanted = triplets.wanted[queries][picked]
    matches = (wanted[:, None, None] == candidates.things[None]) | (wanted[:, None, None] == -1)
    present = (matches.all(-1) & (candidates.things[None, :, :, 0] >= 0)).any(-1)
    adding = kind[picked] == KINDS.index("change_object")
    stays = reference.background[picked][:, None] == candidates.background[None]
    # The scene must hold what the reference holds; judged on its first object, which is the main one in most
    # scenes.
    kept = (reference.things[picked, 0][:, None, None] == candidates.things[None]).all(-1).any(-1)
    result[picked] = present & np.where(adding[:, None], stays & kept, True)
    return result


def main_values(graphs: GraphArrays) -> npt.NDArray[np.int8]:
    """Shape, colour, texture, size of each scene's main object and its background, (n, 5); -2 where none stands out."""
    main = np.maximum(graphs.main, 0)
    nodes = graphs.things[np.arange(len(main)), main]
    values = np.concatenate([nodes, graphs.background[:, None]], 1)
    values[graphs.main < 0] = -2
    return values


def caption_matches(texts: GraphArrays, images: GraphArrays, own: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which images a caption is true of: all nodes it names are there, background and relation agree where said.

    Args:
        texts: Graphs of t captions; ``relation`` is -1 unless the caption says how objects lie.
        images: Graphs of the full captions of i images.
        own: (t,) which of the images each caption was written for; its relation is compared, not the
            caption's words, because a caption may name the objects in another order.

    Returns:
        (t, i) bool.
    """
    said, seen = _bits(texts.things), _bits(images.things)
    seen[(images.things == -1).all(-1)] = 0
    seen_pairs = seen[None, :, None, :]
    found = ((said[:, None, :, None] & seen_pairs) == seen_pairs) & (seen_pairs != 0)
    unsaid = (texts.things == -1).all(-1)[:, None, :]
    matches = (found.any(-1) | unsaid).all(-1)
    matches &= (texts.background[:, None] == images.background[None]) | (texts.background == -1)[:, None]
    relation = images.relation[own]
    matches &= (texts.relation == -1)[:, None] | (relation[:, None] == images.relation[None])
    return np.asarray(matches)


def _bits(things: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """One bit per value of each attribute, all bits where unsaid: cheaper to compare than four columns."""
    bits = np.zeros(things.shape[:2], np.int32)
    shift = 0
    for attribute, name in enumerate(THING_ATTRIBUTES):
        count = len(VALUES[name])
        codes = things[:, :, attribute].astype(np.int32)
        bits |= np.where(codes < 0, (1 << count) - 1, 1 << np.maximum(codes, 0)) << shift
        shift += count
    return bits
