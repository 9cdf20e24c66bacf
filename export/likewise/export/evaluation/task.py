"""What is ranked: queries with their candidates and targets, whichever benchmark they come from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from likewise.export.evaluation.problems import EvaluationError, first_repeated

Mode = Literal["", "focus", "change"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
Metric = Literal["R", "R_subset", "mAP"]


@dataclass(frozen=True, slots=True)
class Task:
    """n queries that are ranked and measured alike.

    Candidates are either lists of each query's own (`galleries`) or one pool that all share. In a list a key may stand
    twice: its first place is the target's, any other is a wrong candidate that ties with it (two GeneCIS templates
    have their target among the distractors).

    Attributes:
        name: For reports; tasks of one name are rows of metrics of one task.
        ids: (n) query ids, distinct.
        references: (n) image keys.
        conditions: (n) texts of each query; none: the reference alone is searched for. Several texts count equally.
        modes: (n) "focus", "change", or "" for a text that says itself what it asks.
        targets: (n) keys that are right, at least one each, distinct; None where labels are hidden.
        cutoffs: Ascending numbers of first places that are looked at.
        galleries: (n) candidates of each query, or None.
        pool: Candidates of all queries, sorted, distinct; or None.
        masks_reference: Whether a query's own reference is taken out of its candidates.
        metric: "R" and "R_subset": a hit if any target is within the first K. "mAP": see `metrics.average_precision`.
        slices: Parts to be reported besides, name to indices of queries.
    """

    name: str
    ids: tuple[str, ...]
    references: tuple[str, ...]
    conditions: tuple[tuple[str, ...], ...]
    modes: tuple[Mode, ...]
    targets: tuple[tuple[str, ...], ...] | None
    cutoffs: tuple[int, ...]
    galleries: tuple[tuple[str, ...], ...] | None = None
    pool: tuple[str, ...] | None = None
    masks_reference: bool = False
    metric: Metric = "R"
    slices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = [self.ids, self.references, self.conditions, self.modes]
        columns += [column for column in (self.targets, self.galleries) if column is not None]
        if {len(column) for column in columns} != {len(self.ids)} or not self.ids:
            raise ValueError(f"task {self.name!r}: columns of {[len(c) for c in columns]} queries. This is a bug.")
        if (self.galleries is None) == (self.pool is None):
            raise ValueError(f"task {self.name!r} needs either galleries or a pool. This is a bug.")
        if repeated := first_repeated(self.ids):
            raise EvaluationError(f"task {self.name!r}: query {repeated!r} is there twice")

    @property
    def depth(self) -> int:
        """The last place that a metric looks at."""
        return max(self.cutoffs)

    def metric_names(self) -> tuple[str, ...]:
        """Its metrics ("R@1", "R@2", ...) in the order of the cut-offs."""
        return tuple(f"{self.metric}@{k}" for k in self.cutoffs)

    def candidates(self, query: int) -> tuple[str, ...]:
        """A query's candidates without its reference where that is masked; a pool as it is."""
        if self.galleries is None:
            return self.pool or ()
        keys = self.galleries[query]
        if not self.masks_reference:
            return keys
        return tuple(key for key in keys if key != self.references[query])

    def candidate_counts(self) -> list[int]:
        """Number of candidates of each query, masked references left out."""
        if self.pool is None:
            return [len(self.candidates(query)) for query in range(len(self.ids))]
        held = set(self.pool) if self.masks_reference else set()
        return [len(self.pool) - (reference in held) for reference in self.references]

    def image_keys(self) -> Iterator[str]:
        """Every image key that the task needs, repeats included."""
        yield from self.references
        yield from self.candidate_keys()

    def candidate_keys(self) -> Iterator[str]:
        """Every candidate key, repeats included."""
        if self.pool is not None:
            yield from self.pool
        for keys in self.galleries or ():
            yield from keys


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Tasks read from one set of annotation files.

    Attributes:
        name: "genecis", "cirr", ...
        tasks: In report order.
        mean: What the unweighted mean over task names is called; None for no mean.
        notes: What a reader of the figures should know.
        files: Image key to path below the image folder, where the annotations say it.
        patterns: Where other images lie below the image folder: "{key}" is the key, "{coco}" its 12 digits, "{a}",
            "{b}" and "{c}" its first characters.
        crop_patterns: Where the images of crops lie, "{key}" being the image id of "id:x,y,w,h".
    """

    name: str
    tasks: tuple[Task, ...]
    mean: str | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    patterns: tuple[str, ...] = ("{key}.jpg", "{key}.png")
    crop_patterns: tuple[str, ...] = ()


def target_places(candidates: Sequence[str], targets: Sequence[str]) -> list[int]:
    """First place of each target among the candidates.

    Raises:
        EvaluationError: A target is no candidate.
    """
    places: dict[str, int] = {}
    for place, key in enumerate(candidates):
        places.setdefault(key, place)
    try:
        return [places[target] for target in targets]
    except KeyError as missing:
        raise EvaluationError(f"target {missing.args[0]!r} is not among its query's candidates") from None


def blank_note(conditions: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A note on queries without any text, if there are some."""
    count = sum(not texts for texts in conditions)
    if not count:
        return ()
    return (f"{count:,} of {len(conditions):,} queries have a blank condition: searched by their image alone",)
