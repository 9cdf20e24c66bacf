"""Recall@k of an approximate answer against the exact one."""

from collections.abc import Sequence


def recall_at_k(found: Sequence[Sequence[str]], exact: Sequence[Sequence[str]], k: int) -> float:
    """Mean share of each query's k exact neighbours that were found among its first k.

    A query with fewer than k exact neighbours counts those it has; one with none is left out. 1.0 if all are left out.

    Args:
        found: Ids of each query's answer, best first.
        exact: Ids of each query's exact answer, best first.
        k: Depth of the comparison, at least 1.

    Raises:
        ValueError: If the two have different numbers of queries, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    shares = [
        len(set(answer[:k]) & set(truth[:k])) / len(truth[:k])
        for answer, truth in zip(found, exact, strict=True)
        if len(truth)
    ]
    return sum(shares) / len(shares) if shares else 1.0
