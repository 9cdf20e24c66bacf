from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from likewise.cli.demo_gallery import (
    ATTRIBUTES,
    Item,
    Recipe,
    is_complete,
    items,
    line_base,
    reference_scene,
    render_all,
    stored_reference,
)
from likewise.cli.demo_queries import CHEAP, Query, build, but, possible, same_as, shows, values
from likewise.export.shapes.captions import full_caption
from likewise.export.shapes.world import Scene, Thing, edit_thing

RECIPE = Recipe(items=1_000)
HEART = Scene((Thing("heart", "blue", "plain", "large"),), "beige")


def _item(scene: Scene, *, price: float = 10.0) -> Item:
    return Item("x", Path("x.png"), scene, price)


def _edited(**changes: str) -> Item:
    return _item(edit_thing(HEART, 0, **changes))


@pytest.fixture(scope="module")
def gallery() -> list[Item]:
    return items(Recipe(), Path("pictures"))


def _queries(gallery: list[Item]) -> list[Query]:
    return build(reference_scene(Recipe()), stored_reference(Recipe(), gallery))


def test_the_same_recipe_gives_the_same_gallery() -> None:
    assert items(RECIPE, Path("a")) == items(RECIPE, Path("a"))


def test_another_seed_gives_another_gallery() -> None:
    assert [item.scene for item in items(RECIPE, Path())] != [item.scene for item in items(Recipe(1_000, 1), Path())]


def test_attributes_are_those_of_the_schema_and_say_what_is_drawn() -> None:
    item = _item(replace(HEART, things=(*HEART.things, Thing("star", "red", "dotted", "small"))), price=3.5)

    assert set(item.attributes) == set(ATTRIBUTES)
    assert item.attributes == {
        "caption": full_caption(item.scene),
        "colour": "blue",
        "shape": "heart",
        "texture": "plain",
        "background": "beige",
        "objects": ["blue heart", "red star"],
        "price": 3.5,
    }


def test_a_scene_in_which_nothing_stands_out_has_no_main_attributes() -> None:
    scene = Scene((Thing("star", "red", "plain", "large"), Thing("ring", "blue", "plain", "large")), "white")

    assert _item(scene).attributes["colour"] is None
    assert values(scene) is None
    assert not same_as(HEART, "colour")(_item(scene))


def test_the_same_colour_is_right_whatever_else_differs() -> None:
    right = same_as(HEART, "colour")

    assert right(_item(Scene((Thing("ring", "blue", "dotted", "small"),), "black")))
    assert not right(_edited(colour="red"))


def test_a_change_is_right_only_if_the_rest_stays() -> None:
    right = but(HEART, "colour", "red")

    assert right(_edited(colour="red"))
    assert right(_edited(colour="red", size="small"))
    assert not right(_item(HEART))
    assert not right(_edited(colour="red", shape="star"))
    assert not right(_edited(colour="red", texture="dotted"))
    assert not right(_item(replace(edit_thing(HEART, 0, colour="red"), background="black")))


def test_a_change_is_wrong_if_another_object_came_along() -> None:
    grown = replace(
        edit_thing(HEART, 0, colour="red"),
        things=(
            Thing("heart", "red", "plain", "large"),
            Thing("star", "green", "plain", "small"),
        ),
    )

    assert not but(HEART, "colour", "red")(_item(grown))


def test_the_same_background_is_right_whatever_stands_before_it() -> None:
    right = same_as(HEART, "background")
    pair = (Thing("star", "red", "plain", "small"), Thing("ring", "green", "plain", "small"))

    assert right(_item(Scene(pair, "beige")))
    assert not right(_item(Scene(pair, "black")))


def test_a_changed_background_is_right_only_with_the_same_object() -> None:
    right = but(HEART, "background", "black")

    assert right(_item(replace(HEART, background="black")))
    assert not right(_item(HEART))
    assert not right(_item(replace(edit_thing(HEART, 0, colour="red"), background="black")))


def test_an_added_object_is_right_only_beside_what_was_there() -> None:
    right = shows("star", besides=HEART)
    star = Thing("star", "green", "plain", "small")

    assert right(_item(replace(HEART, things=(*HEART.things, star))))
    assert not right(_item(HEART))
    assert not right(_item(Scene((star,), "beige")))
    assert not right(_item(Scene((*HEART.things, star), "black")))


def test_most_queries_ask_differently_about_one_picture(gallery: list[Item]) -> None:
    queries = _queries(gallery)
    about_the_picture = [query for query in queries if query.reference == "picture" and query.condition]

    assert len(about_the_picture) >= 8
    assert len({(query.condition, query.where_text) for query in about_the_picture}) == len(about_the_picture)
    assert {query.mode for query in about_the_picture} == {"focus", "change"}
    assert any(query.where_text for query in queries)
    assert any(query.reference == "" for query in queries)
    assert any(query.reference == "item" for query in queries)


def test_the_gallery_holds_enough_right_answers_to_every_query(gallery: list[Item]) -> None:
    found = {query.title: possible(query, gallery, k=6) for query in _queries(gallery)}

    assert min(found.values()) >= 3, found


def test_no_query_is_right_for_everything(gallery: list[Item]) -> None:
    for query in _queries(gallery):
        assert sum(query.right(item) for item in gallery) < len(gallery) / 4, query.title


def test_conditions_disagree_on_what_is_right(gallery: list[Item]) -> None:
    answers = [
        frozenset(item.id for item in gallery if query.right(item))
        for query in _queries(gallery)
        if query.reference == "picture"
    ]

    assert len(set(answers)) == len(answers)


def test_the_filtered_query_is_right_only_below_its_price(gallery: list[Item]) -> None:
    (filtered,) = [query for query in _queries(gallery) if query.where_text]
    right = [item for item in gallery if filtered.right(item)]

    assert right
    assert all(item.price < CHEAP for item in right)


def test_a_stored_reference_cannot_be_its_own_hit(gallery: list[Item]) -> None:
    stored = stored_reference(Recipe(), gallery)
    everything = Query("all", "item", None, None, lambda item: item.id == stored.id, "")

    assert possible(everything, gallery, k=6) == 1
    assert possible(everything, gallery, k=6, without=stored.id) == 0


def test_the_pictures_reference_is_the_first_line_but_no_copy_of_a_stored_picture(gallery: list[Item]) -> None:
    reference = reference_scene(Recipe())

    assert reference.things[0].pair == line_base(Recipe(), 0).things[0].pair
    assert all(item.scene != reference for item in gallery)


def test_rendering_fills_the_folder_and_only_then_calls_it_complete(tmp_path: Path) -> None:
    recipe = Recipe(items=6, pixels=24)
    folder = tmp_path / "pictures"
    wanted = items(recipe, folder)
    seen: list[tuple[int, int]] = []

    assert not is_complete(folder, recipe, wanted)
    render_all(folder, recipe, wanted, progress=lambda done, total: seen.append((done, total)), workers=1)

    assert is_complete(folder, recipe, wanted)
    assert seen[-1] == (6, 6)
    with Image.open(wanted[0].path) as picture:
        assert picture.size == (24, 24)


def test_a_folder_of_another_recipe_or_with_a_missing_file_is_not_complete(tmp_path: Path) -> None:
    recipe = Recipe(items=4, pixels=24)
    folder = tmp_path / "pictures"
    wanted = items(recipe, folder)
    render_all(folder, recipe, wanted, progress=lambda done, total: None, workers=1)

    assert not is_complete(folder, replace(recipe, seed=1), wanted)
    wanted[2].path.unlink()
    assert not is_complete(folder, recipe, wanted)


def test_a_folder_of_someone_elses_files_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "holiday.png"
    mine.write_bytes(b"photo")
    recipe = Recipe(items=2)

    with pytest.raises(FileExistsError, match="was not made by the demo"):
        render_all(tmp_path, recipe, items(recipe, tmp_path), progress=lambda done, total: None)

    assert mine.read_bytes() == b"photo"
