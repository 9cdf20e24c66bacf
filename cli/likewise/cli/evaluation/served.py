"""Ranking through a server's own Search, so that what is measured is what is served.

Every image is an item of one gallery, its key the id. A query names its reference by id and carries the condition in
words; candidates are those that a filter leaves, all compared exactly (`exact`), and nothing is left out by the server
(`include_reference`): a benchmark says itself whether the reference counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from likewise.client import Condition, F, Gallery, Hits
from likewise.client.errors import BatchError
from likewise.client.requests import Query
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.ranking import Ranking, check_ranking, worst_positions
from likewise.export.evaluation.task import Mode, Task, target_places

I64 = npt.NDArray[np.int64]

KEY: Final = "key"
POOLS: Final = "pools"
ATTRIBUTES: Final = {KEY: "string", POOLS: "string_list"}
SERVED: Final = "served"
Method = Literal["served", "image", "text"]

_BATCH: Final = 128
_MAX_K: Final = 10_000  # of the service


class ServedRanker:
    """Ranks by searches of one gallery.

    Args:
        gallery: Holds every image, with the attributes `ATTRIBUTES`.
        method: "served": reference and conditions, as a caller has them. "image": the reference alone. "text": the
            conditions alone.
        pools: Name of each pool, as the items have it in `POOLS`.
        facts: How the gallery came about, for the report.
        advance: Called with the number of queries answered.
    """

    def __init__(
        self,
        gallery: Gallery,
        method: Method,
        pools: dict[tuple[str, ...], str],
        *,
        facts: dict[str, object],
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.name: str = method
        self._gallery = gallery
        self._method = method
        self._pools = pools
        self._facts = facts
        self._advance = advance
        self._warnings: Counter[str] = Counter()
        self._compositions: set[str] = set()
        self._models: set[str] = set()

    def check(self, task: Task) -> None:
        """See `Ranker`."""
        wanted = max(self._k(task, query, task.depth) for query in range(len(task.ids)))
        if wanted > _MAX_K:
            raise EvaluationError(
                f"task {task.name!r} needs {wanted:,} hits a query, a search gives at most {_MAX_K:,}; measure it from "
                "features"
            )

    def positions(self, task: Task) -> list[I64]:
        """See `Ranker`."""
        if task.targets is None:
            raise EvaluationError(f"task {task.name!r} has hidden labels: nothing can be measured on it")
        made = []
        for query, ids, scores in self._answers(task, task.depth):
            if task.pool is None:
                keys = task.candidates(query)
                by_id = dict(zip(ids, scores, strict=True))
                every = np.asarray([by_id[key] for key in keys])
                made.append(worst_positions(every, target_places(keys, task.targets[query]), tie=0.0))
            else:
                made.append(_positions_in(ids, scores, task.targets[query], task.depth))
        return made

    def top(self, task: Task, k: int) -> list[Ranking]:
        """See `Ranker`."""
        return [Ranking(tuple(ids[:k]), scores[:k]) for _, ids, scores in self._answers(task, k)]

    def facts(self) -> dict[str, object]:
        """See `Ranker`."""
        return {
            "way": "server",
            **self._facts,
            "compositions": sorted(self._compositions),
            "models": sorted(self._models),
            "warnings": dict(sorted(self._warnings.items())),
        }

    def _answers(self, task: Task, depth: int) -> Iterator[tuple[int, list[str], npt.NDArray[np.float64]]]:
        """Query, ids and scores, best first, without the reference where the task masks it."""
        for start in range(0, len(task.ids), _BATCH):
            queries = range(start, min(start + _BATCH, len(task.ids)))
            for query, hits in zip(queries, self._search(task, queries, depth), strict=True):
                where = f"the answer to query {task.ids[query]} of {task.name!r}"
                check_ranking(hits.ids, where=where)
                wanted = self._k(task, query, depth)
                if len(hits.ids) < wanted:
                    raise EvaluationError(
                        f"{where} has {len(hits.ids):,} hits instead of {wanted:,}: items were deleted?"
                    )
                self._warnings.update({warning.code for warning in hits.warnings})
                self._compositions.add(hits.plan.composition)
                self._models.update(f"{model.name}/{model.version}" for model in hits.models)
                masked = task.references[query] if task.masks_reference else None
                kept = [place for place, key in enumerate(hits.ids) if key != masked]
                yield query, [hits.ids[place] for place in kept], hits.scores[kept].astype(np.float64)
            if self._advance is not None:
                self._advance(len(queries))

    def _search(self, task: Task, queries: Sequence[int], depth: int) -> list[Hits]:
        asked = [self._query(task, query, depth) for query in queries]
        try:
            return self._gallery.search_batch(asked, exact=True, include_reference=True, timeout=600)
        except BatchError as error:
            index = next(i for i, result in enumerate(error.results) if not isinstance(result, Hits))
            raise EvaluationError(
                f"the server refused query {task.ids[queries[index]]} of {task.name!r}: {error.results[index]}"
            ) from error

    def _query(self, task: Task, query: int, depth: int) -> Query:
        made = Query(k=self._k(task, query, depth))
        if task.pool is None:
            made["where"] = F[KEY].isin(dict.fromkeys(task.candidates(query)))
        else:
            made["where"] = F[POOLS].contains(self._pools[task.pool])
        texts = () if self._method == "image" else task.conditions[query]
        if self._method != "text" or not texts:
            made["id"] = task.references[query]
        if texts:
            mode = task.modes[query] if "id" in made else ""
            made["conditions"] = [Condition(text, mode=_mode(mode)) for text in texts]
        return made

    def _k(self, task: Task, query: int, depth: int) -> int:
        """Hits that settle a query's places down to `depth`, whatever ties with what lies beyond them.

        In a pool these are `depth` wrong ones and all targets: a target whose score is that of the last hit has `depth`
        wrong ones of at least its score before it then, so that ties not seen cannot matter.
        """
        if task.pool is None:
            return len(set(task.candidates(query)))
        targets = len(task.targets[query]) if task.targets is not None else 0
        return min(len(task.pool), depth + targets + task.masks_reference)


def pool_names(tasks: Sequence[Task]) -> dict[tuple[str, ...], str]:
    """A name for each pool: that of the first task that ranks it."""
    names: dict[tuple[str, ...], str] = {}
    for task in tasks:
        if task.pool is not None:
            names.setdefault(task.pool, task.name)
    return names


def check_pools(gallery: Gallery, pools: dict[tuple[str, ...], str]) -> None:
    """Refuse a gallery whose items are not marked as these pools: figures over other candidates mean something else.

    Raises:
        EvaluationError: A pool has more or fewer items there.
    """
    for keys, name in pools.items():
        count = gallery.count(where=F[POOLS].contains(name))
        if count != len(keys):
            raise EvaluationError(
                f"gallery {gallery.name!r} has {count:,} items marked as candidates of {name!r}, the annotations have "
                f"{len(keys):,}: it was filled for other annotations; use another name with --gallery"
            )


def _positions_in(ids: list[str], scores: npt.NDArray[np.float64], targets: tuple[str, ...], depth: int) -> I64:
    places = {key: place for place, key in enumerate(ids)}
    found = worst_positions(scores, [places[key] for key in targets if key in places], tie=0.0)
    beyond = depth + 1 + np.arange(len(targets) - len(found))
    return np.concatenate([found, np.maximum(beyond, found[-1:].max(initial=0) + 1 + np.arange(len(beyond)))])


def _mode(mode: Mode) -> Literal["focus", "change"] | None:
    return mode or None
