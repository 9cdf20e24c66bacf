"""What a promotion is judged by before it happens: the space of its vectors, and the answers to live queries."""

from typing import Any

import numpy as np
import pytest
from tests.unit.server.fakes import field_of, info
from tests.unit.server.model_fixtures import DIM, colour_embedding, composed, png, text_embedding
from tests.unit.server.model_server import COLOURS, Shop, spaces, versions
from tests.unit.server.promotion.promotion_answers import ALL_1, ALL_2, RED, oracle, refused, unit
from tests.unit.server.stubs import scores
from tests.unit.server.version_fixtures import other_space, other_words, same_space, space_of, wider


async def test_one_model_of_another_space_is_refused_with_both_digests(shop: Shop) -> None:
    other_space(shop.folder, 2)
    await shop.load(2)

    error = await refused(shop.promote(2, "image"), "SPACE_MISMATCH")

    digests = {space_of(shop.folder / "tiny-image" / str(version)) for version in (1, 2)}
    assert {info(error).metadata["got"], info(error).metadata["expected"]} == digests
    assert all(digest in (error.details() or "") for digest in digests)
    assert "tiny-text, tiny-composer as well" in (error.details() or "")
    assert await shop.in_use() == ALL_1


@pytest.mark.parametrize("force", [False, True])
async def test_a_family_of_another_space_needs_a_new_gallery_even_when_forced(shop: Shop, force: bool) -> None:
    other_space(shop.folder, 2)
    await shop.load(2)

    error = await refused(shop.promote(2, force=force), "SPACE_MISMATCH")

    assert "a new gallery generation is required" in (error.details() or "")
    assert info(error).metadata["got"] == space_of(shop.folder / "tiny-image" / "2")
    assert info(error).metadata["expected"] == space_of(shop.folder / "tiny-image" / "1")
    assert await shop.in_use() == ALL_1


async def test_a_new_family_takes_over_as_the_error_says(shop: Shop) -> None:
    other_space(shop.folder, 1, family="next")
    await shop.load(1, family="next")
    await shop.promote(1, family="next")

    await shop.create("generation-2", encoder="next")
    answer = await shop.search("red", gallery="generation-2")

    assert versions(answer) == {"next-text": 1}
    assert versions(await shop.search("red")) == {"tiny-text": 1}


class TestCompatibleSpaces:
    async def test_a_gallery_of_the_old_space_is_searched_by_the_first_numbers(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)

        await shop.promote(2)
        answer = await shop.search("red")

        assert list(answer.hits.ids) == oracle(text_embedding("red"))
        assert versions(answer) == {"tiny-text": 2}
        assert spaces(answer.models) == {space_of(shop.folder / "tiny-image" / "2")}
        assert answer.plan.composition == f"text, by the first {DIM} of {DIM + 4} numbers"
        np.testing.assert_allclose(scores(answer), sorted(_scores(text_embedding("red")))[:-11:-1], atol=1e-5)

    async def test_new_items_of_the_old_gallery_are_stored_by_the_first_numbers(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)
        await shop.promote(2)

        await shop.upsert("colours", [40])  # the colour of item 0, encoded by the wide model

        rows = {k: row for part in shop.galleries.shards("colours") for k, row in part.rows.items()}
        expected = colour_embedding(COLOURS[0])
        np.testing.assert_allclose(rows["i40"]["vector"], unit(expected), atol=1e-5)
        assert rows["i40"]["norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
        assert list((await shop.search(image=png(COLOURS[0], (16, 16)))).hits.ids)[:2] == ["i00", "i40"]

    async def test_a_composed_query_is_made_whole_and_cut_at_the_end(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)
        await shop.promote(2)
        family = shop.models.family("tiny")
        assert family.image is not None
        assert family.text is not None
        image = (await family.image.encode([png(RED)])).vectors[0]
        text = (await family.text.encode(["dog"])).vectors[0]

        answer = await shop.search("dog", image=png(RED))

        target = composed(image, text)
        whole = unit(unit(image) + (target - unit(image)))
        assert list(answer.hits.ids) == oracle(whole[:DIM])
        assert versions(answer) == ALL_2

    async def test_a_stored_item_under_a_condition_cannot_go_into_a_longer_composer(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)
        await shop.promote(2)

        assert (await shop.search(item_id="i01")).hits.ids
        error = await refused(shop.search("dog", item_id="i01"), "SPACE_MISMATCH")

        assert "reads 12" in (error.details() or "")
        assert field_of(error) == "reference.item_id"

    async def test_between_spaces_of_as_many_numbers_it_can_with_a_warning(self, shop: Shop) -> None:
        wider(shop.folder, 2, 0)
        await shop.load(2)
        await shop.promote(2)

        answer = await shop.search("dog", item_id="i01")

        assert [warning.code for warning in answer.warnings] == ["REFERENCE_OF_OLDER_SPACE"]
        assert len(answer.hits.ids) == 10

    async def test_fewer_declared_numbers_than_the_gallery_has_are_not_enough(self, shop: Shop) -> None:
        wider(shop.folder, 2, compatible_with={space_of(shop.folder / "tiny-image" / "1"): DIM - 1})
        await shop.load(2)

        error = await refused(shop.promote(2), "SPACE_MISMATCH")

        assert f"declares {DIM - 1} leading numbers compatible where its vectors have {DIM}" in (error.details() or "")

    async def test_it_can_be_rolled_back_while_no_gallery_was_made_for_the_new_space(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)
        await shop.promote(2)
        await shop.rollback()
        assert list((await shop.search("red")).hits.ids) == oracle(text_embedding("red"))
        await shop.promote(2)
        await shop.create("wide")
        assert len((await shop.search("red", gallery="wide")).hits.ids) == 10

        error = await refused(shop.rollback(), "SPACE_MISMATCH")

        assert "gallery 'wide'" in (error.details() or "")
        assert await shop.in_use() == ALL_2

    async def test_a_promotion_never_leaves_an_older_gallery_without_models(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        second = space_of(shop.folder / "tiny-image" / "2")
        wider(shop.folder, 3, 8, compatible_with={second: DIM + 4})  # compatible with 2, not with the gallery's 1
        for version in (2, 3):
            await shop.load(version)
        await shop.promote(2)

        error = await refused(shop.promote(3), "SPACE_MISMATCH")

        assert "gallery 'colours'" in (error.details() or "")


class TestComparison:
    async def test_without_live_queries_nothing_is_compared_and_the_reply_says_so(self, shop: Shop) -> None:
        same_space(shop.folder, 2)
        await shop.load(2)

        response = await shop.promote(2)

        assert (response.compared, response.overlap) == (0, 0.0)

    async def test_the_same_answers_overlap_wholly(self, shop: Shop) -> None:
        same_space(shop.folder, 2)
        await shop.load(2)
        for text in ("red", "green", "small dog"):
            await shop.search(text)
        await shop.search("dog", image=png(RED))
        await shop.search(image=png((9, 9, 200)))
        await shop.search(item_id="i03")  # no model takes part

        response = await shop.promote(2, min_overlap=1.0)

        assert (response.compared, response.overlap) == (5, 1.0)

    async def test_other_answers_overlap_as_brute_force_says(self, shop: Shop) -> None:
        other_words(shop.folder, 2)
        await shop.load(2, "text")
        texts = ["red", "green", "blue", "small dog", "another large"]
        before = [list((await shop.search(text)).hits.ids) for text in texts]

        response = await shop.promote(2, "text")

        after = [list((await shop.search(text)).hits.ids) for text in texts]
        shares = [len({*a} & {*b}) / 10 for a, b in zip(before, after, strict=True)]
        assert response.compared == 5
        assert response.overlap == pytest.approx(np.mean(shares))
        assert response.overlap < 1

    async def test_too_little_overlap_refuses_the_promotion_unless_it_is_forced(self, shop: Shop) -> None:
        other_words(shop.folder, 2)
        await shop.load(2, "text")
        for text in ("red", "small dog"):
            await shop.search(text)

        error = await refused(shop.promote(2, "text", min_overlap=0.99), "OVERLAP_TOO_LOW")
        assert info(error).metadata["compared"] == "2"
        assert float(info(error).metadata["overlap"]) < 0.99
        assert await shop.in_use() == ALL_1

        response = await shop.promote(2, "text", min_overlap=0.99, force=True)
        assert (response.compared, response.model.version) == (0, 2)

    async def test_a_threshold_that_cannot_be_judged_refuses(self, shop: Shop) -> None:
        same_space(shop.folder, 2)
        await shop.load(2)

        error = await refused(shop.promote(2, min_overlap=0.5), "NO_LIVE_QUERIES")

        assert field_of(error) == "min_overlap"
        assert await shop.in_use() == ALL_1

    async def test_compatible_spaces_are_compared_in_the_gallery_s_own_numbers(self, shop: Shop) -> None:
        wider(shop.folder, 2)
        await shop.load(2)
        await shop.search("red")
        await shop.search(image=png((1, 200, 30)))

        response = await shop.promote(2, min_overlap=1.0)

        assert (response.compared, response.overlap) == (2, 1.0)

    async def test_queries_of_galleries_that_are_gone_are_left_out(self, shop: Shop) -> None:
        same_space(shop.folder, 2)
        await shop.load(2)
        await shop.create("gone")
        await shop.search("red", gallery="gone")
        await shop.search("red")
        await shop.galleries.delete("gone")

        assert (await shop.promote(2)).compared == 1


def _scores(query: Any) -> list[float]:
    return [float(unit(colour_embedding(colour)) @ unit(query)) for colour in COLOURS]
