"""Ranking from precomputed features, in float64 blocks of bounded memory."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.evaluation.composers import Composer, framed, unit_rows
from likewise.export.evaluation.features import Features
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.ranking import TIE, Ranking, best_first, worst_positions
from likewise.export.evaluation.task import Task, target_places

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_QUERIES: Final = 1024
_ROWS: Final = 8192  # of a block: 64 MiB of scores with as many queries


class FeatureRanker:
    """Scores are inner products of composed queries and unit candidates.

    Args:
        images: Raw image features; references and, unless `gallery` is given, candidates.
        texts: Raw text features; None where no condition is read.
        composer: Makes the queries.
        gallery: Candidates' features where they lie in a file of their own.
    """

    def __init__(
        self, images: Features, texts: Features | None, composer: Composer, gallery: Features | None = None
    ) -> None:
        self.name = composer.name
        self._images = images
        self._texts = texts
        self._composer = composer
        self._gallery = gallery or images

    def check(self, task: Task) -> None:
        """See `Ranker`."""
        self._images.places(dict.fromkeys(task.references), what="reference keys")
        self._gallery.places(dict.fromkeys(task.candidate_keys()), what="candidate keys")
        texts = self._condition_texts(task)
        if texts:
            self._text_features().places(dict.fromkeys(text for _, text in texts), what="condition texts")
        if self._gallery.dim != self._images.dim:
            raise EvaluationError(
                f"{self._gallery.path} has vectors of {self._gallery.dim:,} numbers, {self._images.path} of "
                f"{self._images.dim:,}; take both from one model"
            )
        if texts:
            self._composer.check(self._images.dim, self._text_features().dim)

    def positions(self, task: Task) -> list[I64]:
        """See `Ranker`; exact at any depth."""
        if task.targets is None:
            raise EvaluationError(f"task {task.name!r} has hidden labels: nothing can be measured on it")
        queries = self.queries(task)
        if task.pool is None:
            return [
                worst_positions(scores, target_places(keys, task.targets[query]))
                for query, keys, scores in self._list_scores(task, queries)
            ]
        return self._pool_positions(task, task.pool, task.targets, queries)

    def top(self, task: Task, k: int) -> list[Ranking]:
        """See `Ranker`."""
        queries = self.queries(task)
        if task.pool is not None:
            return self._pool_top(task, task.pool, queries, k)
        made = []
        for _, keys, scores in self._list_scores(task, queries):
            ordered = sorted(range(len(keys)), key=keys.__getitem__)
            best = best_first(scores[ordered], k)
            rows = [ordered[index] for index in best]
            made.append(Ranking(tuple(keys[row] for row in rows), scores[rows]))
        return made

    def facts(self) -> dict[str, object]:
        """See `Ranker`."""
        facts: dict[str, object] = {"way": "features", "image_features": str(self._images.path)}
        if self._texts is not None and self._composer.reads_text:
            facts["text_features"] = str(self._texts.path)
        if self._gallery is not self._images:
            facts["gallery_features"] = str(self._gallery.path)
        return facts | {"prompts": dict(self._composer.prompts)}

    def queries(self, task: Task) -> F64:
        """(n, d) unit queries; a query's several texts are composed each, summed and brought to unit length."""
        references = self._images.places(task.references, what="reference keys")
        made = np.empty((len(references), self._images.dim), np.float64)
        pairs = self._condition_texts(task)
        owners = np.asarray([query for query, _ in pairs], np.int64)
        texts = self._text_features().places((text for _, text in pairs), what="condition texts") if pairs else owners
        plain = np.ones(len(references), bool)
        plain[owners] = False
        for start in range(0, len(references), _QUERIES):
            chunk = slice(start, start + _QUERIES)
            made[chunk] = self._images.unit(references[chunk]) * plain[chunk, None]
        for start in range(0, len(pairs), _QUERIES):
            own, text = owners[start : start + _QUERIES], texts[start : start + _QUERIES]
            composed = self._composer.compose(self._images.raw(references[own]), self._text_features().raw(text))
            np.add.at(made, own, composed)
        return unit_rows(made)

    def _condition_texts(self, task: Task) -> list[tuple[int, str]]:
        if not self._composer.reads_text:
            return []
        return [
            (query, framed(self._composer.prompts, text, mode))
            for query, (texts, mode) in enumerate(zip(task.conditions, task.modes, strict=True))
            for text in texts
        ]

    def _text_features(self) -> Features:
        if self._texts is None:
            raise EvaluationError(f"composer {self.name!r} reads conditions: give their features with --text-features")
        return self._texts

    def _list_scores(self, task: Task, queries: F64) -> Iterator[tuple[int, tuple[str, ...], F64]]:
        """Query, candidates and their scores, in order of queries."""
        batch: list[tuple[int, tuple[str, ...]]] = []
        rows = 0
        for query in range(len(task.ids)):
            keys = task.candidates(query)
            batch.append((query, keys))
            rows += len(keys)
            if rows >= _ROWS or query + 1 == len(task.ids):
                yield from self._batch_scores(batch, queries)
                batch, rows = [], 0

    def _batch_scores(
        self, batch: list[tuple[int, tuple[str, ...]]], queries: F64
    ) -> Iterator[tuple[int, tuple[str, ...], F64]]:
        sizes = [len(keys) for _, keys in batch]
        rows = self._gallery.places((key for _, keys in batch for key in keys), what="candidate keys")
        owners = np.repeat([query for query, _ in batch], sizes)
        scores = np.einsum("nd,nd->n", queries[owners], self._gallery.unit(rows))
        ends = np.cumsum(sizes)
        for (query, keys), end, size in zip(batch, ends, sizes, strict=True):
            yield query, keys, scores[end - size : end]

    def _pool_blocks(self, pool: tuple[str, ...]) -> Iterator[tuple[int, F64]]:
        rows = self._gallery.places(pool, what="candidate keys")
        for start in range(0, len(rows), _ROWS):
            yield start, self._gallery.unit(rows[start : start + _ROWS])

    def _pool_positions(
        self, task: Task, pool: tuple[str, ...], targets: tuple[tuple[str, ...], ...], queries: F64
    ) -> list[I64]:
        columns = {key: column for column, key in enumerate(pool)}
        right = [np.asarray(_columns_of(keys, columns), np.int64) for keys in targets]
        # Ascending scores of each query's targets: what wrong candidates are compared with.
        own = [
            np.sort(self._gallery.unit(self._gallery.places(keys, what="target keys")) @ queries[query])
            for query, keys in enumerate(targets)
        ]
        ahead = [np.zeros(len(scores), np.int64) for scores in own]
        for start, block in self._pool_blocks(pool):
            for first in range(0, len(queries), _QUERIES):
                scores = queries[first : first + _QUERIES] @ block.T
                for row, values in enumerate(scores):
                    query = first + row
                    hidden = right[query]
                    if task.masks_reference and task.references[query] in columns:
                        hidden = np.append(hidden, columns[task.references[query]])
                    inside = hidden[(hidden >= start) & (hidden < start + len(block))] - start
                    values[inside] = -np.inf
                    ahead[query] += _at_least(values, own[query] - TIE)
        return [np.asarray(counts[::-1] + np.arange(1, len(counts) + 1), np.int64) for counts in ahead]

    def _pool_top(self, task: Task, pool: tuple[str, ...], queries: F64, k: int) -> list[Ranking]:
        columns = {key: column for column, key in enumerate(pool)}
        best = [(np.empty(0, np.int64), np.empty(0)) for _ in task.ids]
        for start, block in self._pool_blocks(pool):
            for first in range(0, len(queries), _QUERIES):
                scores = queries[first : first + _QUERIES] @ block.T
                for row, values in enumerate(scores):
                    query = first + row
                    masked = columns.get(task.references[query], -1) if task.masks_reference else -1
                    if start <= masked < start + len(block):
                        values[masked - start] = -np.inf
                    # Earlier columns first, so that the index keeps on deciding among ties.
                    places, kept = best[query]
                    places = np.concatenate([places, np.arange(start, start + len(block))])
                    kept = np.concatenate([kept, values])
                    chosen = np.sort(best_first(kept, k))
                    best[query] = places[chosen], kept[chosen]
        made = []
        for places, scores in best:
            order = best_first(scores, k)
            order = order[scores[order] > -np.inf]
            made.append(Ranking(tuple(pool[place] for place in places[order]), scores[order]))
        return made


def _columns_of(keys: tuple[str, ...], columns: dict[str, int]) -> list[int]:
    if absent := [key for key in keys if key not in columns]:
        raise EvaluationError(f"target {absent[0]!r} is not among the candidates")
    return [columns[key] for key in keys]


def _at_least(values: F64, thresholds: F64) -> I64:
    """How many of (g,) values reach each of the (m,) ascending thresholds."""
    if len(thresholds) == 1:
        return np.asarray([np.count_nonzero(values >= thresholds[0])], np.int64)
    reached = np.bincount(np.searchsorted(thresholds, values, side="right"), minlength=len(thresholds) + 1)
    return np.asarray(reached[::-1].cumsum()[::-1][1:], np.int64)
