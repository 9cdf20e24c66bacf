"""How long-running steps report, and how they are told to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float, str], None]
"""Called with what is being done, the share done in [0, 1], and a few words on how it goes."""


def silent(stage: str, share: float, note: str) -> None:
    """The progress of one who does not look."""
    del stage, share, note


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the held-out split: after which step, and how good it was (larger is better)."""

    step: int
    score: float


class TrainingError(RuntimeError):
    """Training cannot go on, or its material is not enough."""
