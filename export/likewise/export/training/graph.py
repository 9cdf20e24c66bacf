"""What a caption says, as a graph: things with attributes, and relations between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing that a caption names.

    Attributes:
        head: Its noun, lower case and singular where the corpus knows the singular ("star").
        attributes: Words that describe it, in the caption's order ("large", "red").
    """

    head: str
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((*self.attributes, self.head))


@dataclass(frozen=True, slots=True)
class Relation:
    """How one thing stands to another; ``subject`` and ``object`` are positions in ``CaptionGraph.entities``."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True, slots=True)
class CaptionGraph:
    """A caption as things and relations; the first thing is the caption's subject.

    Attributes:
        entities: In the caption's order; empty where nothing could be read.
        relations: In the caption's order.
    """

    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()

    def __str__(self) -> str:
        things = "; ".join(map(str, self.entities)) or "nothing"
        links = ", ".join(
            f"{self.entities[r.subject].head} {r.name} {self.entities[r.object].head}" for r in self.relations
        )
        return f"{things} ({links})" if links else things


class CaptionParser(Protocol):
    """Reads captions; a whole corpus at once, so that a parser may learn from it or work in batches.

    A dependency parser fits in a few lines: run it over ``captions``, make an ``Entity`` of each noun with its
    ``amod`` and ``compound`` children, and a ``Relation`` of each preposition or verb between two of them.
    """

    def parse(self, captions: Sequence[str]) -> Sequence[CaptionGraph]:
        """One graph per caption, in order; a caption that cannot be read gives an empty graph."""
        ...
