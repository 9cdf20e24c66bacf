"""What the demo asks, and when a hit is right: the world knows what every picture shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from likewise.cli.demo_gallery import Item
from likewise.client import F
from likewise.export.shapes.world import Pair, Scene, Thing

Truth = Callable[[Item], bool]

CHEAP: Final = 60.0
_WHOLE: Final = ("colour", "shape", "texture", "background")


@dataclass(frozen=True, slots=True)
class Query:
    """One search of the demo.

    Attributes:
        title: The query in a few words, for a heading.
        reference: "picture" for the demo's picture, "item" for the stored item, "" for none.
        condition: The condition's text, or None.
        mode: "focus", "change" or None, as the SDK takes it.
        where: Filter, or None.
        where_text: The filter in words.
        right: Whether a picture is a right answer.
        means: What `right` asks for, in words.
    """

    title: str
    reference: str
    condition: str | None
    mode: str | None
    right: Truth
    means: str
    where: Any = None
    where_text: str = ""


def main_thing(scene: Scene) -> Thing | None:
    """The object that attribute conditions speak of, None where none stands out."""
    return None if scene.main is None else scene.things[scene.main]


def same_as(reference: Scene, *names: str) -> Truth:
    """A truth: the main object (or the background, if named) agrees with the reference's in these attributes.

    Args:
        reference: A scene with a main object.
        names: "colour", "shape", "texture", "size" and "background".
    """
    ours = _values(reference)
    of_thing = [name for name in names if name != "background"]

    def right(item: Item) -> bool:
        if "background" in names and item.scene.background != reference.background:
            return False
        # Every scene has a background, but only one in which an object stands out has a colour or a shape of its own.
        theirs = values(item.scene)
        return not of_thing or (theirs is not None and all(theirs[name] == ours[name] for name in of_thing))

    return right


def but(reference: Scene, name: str, value: str) -> Truth:
    """A truth: everything is as in the reference, only the main object's (or the background's) `name` is `value`.

    Size and place are free; objects besides the main one must be the same by shape and colour.
    """
    wanted = {**_values(reference), name: value}
    others = _others(reference)

    def right(item: Item) -> bool:
        theirs = values(item.scene)
        return theirs is not None and all(theirs[n] == wanted[n] for n in _WHOLE) and _others(item.scene) == others

    return right


def _others(scene: Scene) -> list[Pair]:
    return sorted(thing.pair for i, thing in enumerate(scene.things) if i != scene.main)


def _values(reference: Scene) -> dict[str, str]:
    ours = values(reference)
    if ours is None:
        raise ValueError("a reference needs a main object")
    return ours


def values(scene: Scene) -> dict[str, str] | None:
    """The main object's attributes and the background by name, None where no object stands out."""
    thing = main_thing(scene)
    if thing is None:
        return None
    return {
        "colour": thing.colour,
        "shape": thing.shape,
        "texture": thing.texture,
        "size": thing.size,
        "background": scene.background,
    }


def shows(shape: str, *, besides: Scene) -> Truth:
    """A truth: what `besides` shows is there, on its background, and an object of this shape besides.

    Both objects agree with the reference in shape and colour; texture and size are free.
    """
    kept = {thing.pair for thing in besides.things}

    def right(item: Item) -> bool:
        pairs = {thing.pair for thing in item.scene.things}
        added = pairs - kept
        return kept <= pairs and item.scene.background == besides.background and any(pair[0] == shape for pair in added)

    return right


def build(reference: Scene, stored: Item) -> list[Query]:
    """One picture under different conditions, then with a filter, then words alone, then a stored item.

    Args:
        reference: The scene of the demo's picture, one object.
        stored: The stored item that the last query starts from, with a main object.
    """
    ours, theirs = _values(reference), _values(stored.scene)
    colour = _first("red", "orange", unlike=ours["colour"])
    ground = _first("black", "white", unlike=ours["background"])
    shape = _first("ring", "cross", unlike=ours["shape"])
    added = _first("star", "heart", unlike=ours["shape"])
    pale = _first("yellow", "cyan", unlike=theirs["colour"])
    recoloured = but(reference, "colour", colour)

    def focus(name: str, means: str) -> Query:
        return Query(f"the same {name}", "picture", f"the same {name}", "focus", same_as(reference, name), means)

    def change(condition: str, right: Truth, means: str) -> Query:
        return Query(condition, "picture", condition, "change", right, f"{means}, the rest as it is")

    return [
        Query("no condition", "picture", None, None, but(reference, "colour", ours["colour"]), "alike in everything"),
        focus("colour", ours["colour"]),
        focus("shape", ours["shape"]),
        focus("background", f"{ours['background']} background"),
        change(f"in {colour}", recoloured, colour),
        change(f"on a {ground} background", but(reference, "background", ground), f"{ground} background"),
        change(f"as a {shape}", but(reference, "shape", shape), shape),
        change(f"with a {added}", shows(added, besides=reference), f"a {added} added"),
        Query(
            f"in {colour}, for less than {CHEAP:.0f}",
            "picture",
            f"in {colour}",
            "change",
            lambda item: recoloured(item) and item.price < CHEAP,
            f"{colour}, cheap, the rest as it is",
            where=F.price < CHEAP,
            where_text=f"price < {CHEAP:.0f}",
        ),
        Query(
            "a green circle on a white background",
            "",
            "a green circle on a white background",
            None,
            _described("green", "circle", "white"),
            "green, circle, white background",
        ),
        Query(
            f"but in {pale}",
            "item",
            f"but in {pale}",
            None,
            but(stored.scene, "colour", pale),
            f"{pale}, the rest as it is",
        ),
    ]


def _first(*choices: str, unlike: str) -> str:
    return next(choice for choice in choices if choice != unlike)


def _described(colour: str, shape: str, background: str) -> Truth:
    def right(item: Item) -> bool:
        return item.scene.background == background and (shape, colour) in {thing.pair for thing in item.scene.things}

    return right


def possible(query: Query, gallery: Sequence[Item], *, k: int, without: str = "") -> int:
    """How many of the first `k` could be right: the right answers the gallery holds, at most k.

    Args:
        query: What was asked.
        gallery: All items.
        k: Hits asked for.
        without: Id that cannot be a hit (the reference itself).
    """
    return min(k, sum(query.right(item) for item in gallery if item.id != without))
