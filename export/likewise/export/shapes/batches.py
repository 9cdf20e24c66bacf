"""Training batches: scenes and their captions, conditions, and what may not count as a negative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.shapes import captions
from likewise.export.shapes.binding import pair_phrases
from likewise.export.shapes.pool import VARIANTS, GraphArrays, Pool, to_arrays, word_targets
from likewise.export.shapes.triplets import NEGATIVES, Triplets, caption_matches, main_values, satisfied
from likewise.export.shapes.world import BACKGROUNDS, COLOURS, SHAPES, THING_ATTRIBUTES, VALUES
from likewise.export.tokenizer import Tokenizer

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
_PHRASES: Final = 192
_KEEP_WORD: Final = (0.7, 0.65, 0.4, 0.25)  # shape, colour, texture, size
_UNKNOWN_RATE: Final = 0.01  # words replaced by [UNK], so that an unknown word in a query does little harm


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's material: i images, i captions, q queries.

    Attributes:
        rows: (i,) pool rows of the images.
        captions: (i, n) int32 tokens of one caption per image.
        true_captions: (i, i) bool, caption t is true of image j; the diagonal is its own.
        phrases: (p, n) int32 tokens of short phrases out of the captions ("a striped star", "grey
            background").
        true_phrases: (p, i) bool, phrase t is true of image j.
        things: (i, 3, 4) int8, codes of each image's objects, read in its full caption.
        words: (i, w) bool, words and pairs of words that each image's full caption holds.
        conditions: (q, n) int32 tokens.
        references: (q,) positions in ``rows``.
        targets: (q,) positions in ``rows``.
        excused: (q, i) bool, candidates that are neither target nor counted as wrong.
    """

    rows: I64
    captions: I32
    true_captions: npt.NDArray[np.bool_]
    phrases: I32
    true_phrases: npt.NDArray[np.bool_]
    things: npt.NDArray[np.int8]
    words: npt.NDArray[np.bool_]
    conditions: I32
    references: I64
    targets: I64
    excused: npt.NDArray[np.bool_]


class Batches:
    """Draws batches; step i depends on (seed, i) only, so a resumed run sees what an unbroken one would.

    Args:
        pool: The rendered scenes.
        triplets: Mined from the pool's captions.
        tokenizer: Of the text encoder.
        seed: First word of every step's random stream.
    """

    def __init__(self, pool: Pool, triplets: Triplets, tokenizer: Tokenizer, *, seed: int) -> None:
        self.pool = pool
        self.triplets = triplets
        self._seed = seed
        flat = [text for texts in pool.variants for text in texts]
        self._caption_ids = tokenizer(flat).ids
        graphs = to_arrays([captions.parse(text) for text in flat])
        self._caption_graphs = graphs
        self.condition_ids, self.condition_index = _unique_tokens(triplets.texts, tokenizer)
        things = pool.graphs.things[pool.graphs.things[:, :, 0] >= 0]
        self.known_pairs = np.zeros((len(SHAPES), len(COLOURS)), np.bool_)
        self.known_pairs[things[:, 0], things[:, 1]] = True
        self.pair_ids = pair_phrases(tokenizer)
        self._targets, self.known_words = word_targets(pool.graphs)
        self.main_values = main_values(pool.graphs).astype(np.int64)
        self._single = np.flatnonzero((pool.graphs.things[:, :, 0] >= 0).sum(1) == 1)
        self._words = _WordIds(tokenizer)
        self._starts = np.flatnonzero(np.r_[True, triplets.reference[1:] != triplets.reference[:-1]])
        self._stops = np.r_[self._starts[1:], len(triplets.reference)]

    def single(self, step: int, count: int) -> I64:
        """Rows of scenes with one object, for the first steps of training."""
        return np.random.default_rng((self._seed, step)).choice(self._single, count, replace=False)

    def __call__(self, step: int, *, references: int, queries: int, negatives: int) -> Batch:
        """The batch of a step: up to ``queries`` queries per reference, ``negatives`` hard negatives per query."""
        rng = np.random.default_rng((self._seed, step))
        picked: list[int] = []
        for group in rng.choice(len(self._starts), references, replace=False):
            members = rng.permutation(np.arange(self._starts[group], self._stops[group]))
            # Different kinds first: the stable sort on how often a kind came before keeps the random order
            # within.
            kinds = self.triplets.kind[members]
            seen = [int((kinds[:i] == kinds[i]).sum()) for i in range(len(kinds))]
            picked += members[np.argsort(seen, kind="stable")][:queries].tolist()
        query = np.asarray(picked, np.int64)
        columns = np.argsort(rng.random((len(query), NEGATIVES)), 1)
        hard = np.take_along_axis(self.triplets.negatives[query], columns, 1)
        # Found negatives first; the rest of the row is -1.
        hard = np.take_along_axis(hard, np.argsort(hard < 0, 1, kind="stable"), 1)[:, :negatives]
        reference, target = self.triplets.reference[query], self.triplets.target[query]
        rows = np.unique(np.concatenate([reference, target, hard[hard >= 0]]))
        return self._assemble(rng, query, rows, hard)

    def _assemble(self, rng: np.random.Generator, query: I64, rows: I64, hard: I64) -> Batch:
        graphs = self.pool.graphs.take(rows)
        targets = np.searchsorted(rows, self.triplets.target[query])
        excused = satisfied(self.triplets, query, self.pool.graphs, rows)
        held = hard >= 0
        excused[np.nonzero(held)[0], np.searchsorted(rows, hard[held])] = False
        excused[np.arange(len(query)), targets] = False
        variant = rows * VARIANTS + rng.integers(VARIANTS, size=len(rows))
        texts: GraphArrays = self._caption_graphs.take(variant)
        phrases, phrase_graphs = self._phrases(rng, graphs)
        wording = rng.integers(self.condition_index.shape[1], size=len(query))
        return Batch(
            rows=rows,
            captions=_blur(rng, trim(self._caption_ids[variant])),
            true_captions=caption_matches(texts, graphs, np.arange(len(rows))),
            phrases=phrases,
            true_phrases=caption_matches(phrase_graphs, graphs, np.zeros(len(phrases), np.int64)),
            things=graphs.things,
            words=self._targets[rows],
            conditions=_blur(rng, trim(self.condition_ids[self.condition_index[query, wording]])),
            references=np.searchsorted(rows, self.triplets.reference[query]),
            targets=targets,
            excused=excused,
        )

    def _phrases(self, rng: np.random.Generator, graphs: GraphArrays) -> tuple[I32, GraphArrays]:
        """Parts of the batch's captions: a node with some attributes left out, or a background.

        A fifth of the nodes take their colour from another node of the same scene, so that "a red star" is
        learnt to be false where the star is blue and the circle red; a pair that no training caption holds is
        never made.
        """
        images = rng.integers(len(graphs.main), size=_PHRASES)
        counts = (graphs.things[images, :, 0] >= 0).sum(1)
        nodes = graphs.things[images, (rng.random(_PHRASES) * counts).astype(np.int64)]
        others = graphs.things[images, (rng.random(_PHRASES) * counts).astype(np.int64)]
        swapped = nodes.copy()
        swapped[:, 1] = others[:, 1]
        swap = (rng.random(_PHRASES) < 0.2) & self.known_pairs[swapped[:, 0], swapped[:, 1]]
        nodes = np.where(swap[:, None], swapped, nodes)
        kept = rng.random((_PHRASES, 4)) < _KEEP_WORD
        kept[~kept.any(1), rng.integers(2)] = True
        nodes = np.where(kept, nodes, np.int8(-1))
        ground = rng.random(_PHRASES) < 0.12
        nodes[ground] = -1
        background = np.where(ground, graphs.background[images], np.int8(-1))
        none = np.full(_PHRASES, -1, np.int8)
        return self._words.write(nodes, background), GraphArrays(nodes[:, None], background, none, none)


class _WordIds:
    """Writes phrases as token ids without passing through text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        def ids(words: Sequence[str]) -> I32:
            # The last entry serves code -1: no word.
            return np.append(tokenizer(words).ids[:, 0], np.int32(0))

        self._attributes = [ids(VALUES[name]) for name in THING_ATTRIBUTES]
        self._backgrounds = ids(BACKGROUNDS)
        fixed = tokenizer(["a", "object", "background"]).ids[:, 0].tolist()
        self._article, self._object, self._ground = fixed

    def write(self, nodes: npt.NDArray[np.int8], background: npt.NDArray[np.int8]) -> I32:
        """Write p phrases as (p, 5) token ids, padding last.

        Args:
            nodes: (p, 4) codes of shape, colour, texture and size, -1 for no word.
            background: (p,) codes; where it is not -1 the phrase is "<background> background".
        """
        shape, colour, texture, size = (table[nodes[:, a].astype(np.int64)] for a, table in enumerate(self._attributes))
        is_ground = background >= 0

        article = np.full(len(nodes), self._article)
        noun = np.where(shape != 0, shape, self._object)
        ids = np.stack([article, size, texture, colour, noun], 1)
        ids[is_ground] = 0
        ids[is_ground, 0] = self._backgrounds[background[is_ground].astype(np.int64)]
        ids[is_ground, 1] = self._ground
        ordered = np.argsort(ids == 0, 1, kind="stable")
        return np.take_along_axis(ids, ordered, 1).astype(np.int32)


def trim(ids: I32) -> I32:
    """Drop the columns that are padding in every row."""
    return ids[:, : max(1, int((ids != 0).any(0).sum()))]


def _blur(rng: np.random.Generator, ids: I32) -> I32:
    return np.where((ids != 0) & (rng.random(ids.shape) < _UNKNOWN_RATE), np.int32(1), ids)


def _unique_tokens(texts: Sequence[Sequence[str]], tokenizer: Tokenizer) -> tuple[I32, I64]:
    flat = np.asarray([list(row) for row in texts])
    unique, inverse = np.unique(flat, return_inverse=True)
    return tokenizer(unique.tolist()).ids, inverse.reshape(flat.shape).astype(np.int64)
