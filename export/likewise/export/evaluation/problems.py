"""What an evaluation refuses, with the words shared by every refusal."""

from collections.abc import Iterable, Sequence
from typing import Final

_SHOWN: Final = 3


class EvaluationError(ValueError):
    """Annotations, features, images or predictions cannot be measured as they are; the message names the fix."""


def some(names: Iterable[object]) -> str:
    """The first few of many names for a message: "'a', 'b', 'c' and 12 more"."""
    every = list(names)
    text = ", ".join(repr(name) for name in every[:_SHOWN])
    return text if len(every) <= _SHOWN else f"{text} and {len(every) - _SHOWN:,} more"


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs a second time; None when all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
