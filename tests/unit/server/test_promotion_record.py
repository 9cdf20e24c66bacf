"""What a store says about the versions in use, and what a start makes of it. Pure values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.test_lineup import NEW, lineup, model

from likewise.export.manifest import Manifest
from likewise.server.lineup import History, LineupError
from likewise.server.model_folders import ModelsError
from likewise.server.promotion_record import Recorded, from_json, recorded, restored, to_json

versions = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 2**40), min_size=1, max_size=3)
records = st.builds(Recorded, versions, st.none() | versions, st.none() | versions)


def manifests(*numbers: int, **changes: Any) -> list[Manifest]:
    return [
        model(kind, number, **changes) for number in numbers for kind in ("image_encoder", "text_encoder", "composer")
    ]


def of(number: int) -> dict[str, int]:
    return {"m-composer": number, "m-image_encoder": number, "m-text_encoder": number}


@given(st.dictionaries(st.text(max_size=8), records, max_size=3))
def test_what_is_written_is_read_again(families: dict[str, Recorded]) -> None:
    assert from_json(to_json(families)) == families


def test_no_document_is_no_record() -> None:
    assert from_json(None) == {}


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "x",
        {"format": 1},
        {"format": "x", "families": {}},
        {"format": 1, "families": {"m": {}}},
        {"format": 1, "families": {"m": {"current": 3}}},
        {"format": 1, "families": {"m": {"current": {"a": "b"}}}},
    ],
)
def test_a_document_that_is_no_record_is_refused_with_the_way_out(document: Any) -> None:
    with pytest.raises(ModelsError, match=r"models\.json of the store is no record.*delete it to serve the highest"):
        from_json(document)


def test_a_record_of_a_newer_release_is_refused() -> None:
    with pytest.raises(ModelsError, match="has format 2, this release reads 1: upgrade"):
        from_json({"format": 2, "families": {}})


def test_a_history_is_recorded_by_its_versions() -> None:
    history = History(lineup(3), previous=lineup(2))

    assert recorded(history) == Recorded(of(3), of(2), None)


def test_without_a_record_the_highest_versions_serve() -> None:
    assert restored("m", None, manifests(1, 10, 9)).current.versions == of(10)


def test_the_recorded_versions_serve_whatever_else_is_there() -> None:
    record = Recorded(of(2), previous=of(1))
    odd = manifests(7, space=NEW)  # would not even fit together with the others

    history = restored("m", record, [*manifests(1, 2, 3), odd[0]])

    assert history.current.versions == of(2)
    assert history.previous is not None
    assert history.previous.versions == of(1)


def test_what_is_not_in_use_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    restored("m", Recorded(of(1)), manifests(1, 2))

    assert "not in use: m-composer/2, m-image_encoder/2, m-text_encoder/2" in caplog.text


def test_a_kind_that_was_not_there_when_recorded_is_filled_if_it_is_of_the_space() -> None:
    record = Recorded({"m-image_encoder": 1, "m-text_encoder": 1})
    there = [*manifests(1, 2), model("composer", 3), model("composer", 4, space=NEW)]

    assert restored("m", record, there).current.versions == of(1) | {"m-composer": 3}


def test_when_a_recorded_version_is_gone_the_highest_serve_and_an_error_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = restored("m", Recorded(of(2), previous=of(1)), manifests(1, 3))

    assert (history.current.versions, history.previous) == (of(3), None)
    (error,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "m-composer/2, m-image_encoder/2, m-text_encoder/2 was in use and is gone" in error.getMessage()


def test_when_what_was_kept_is_gone_there_is_nothing_to_roll_back_to() -> None:
    assert restored("m", Recorded(of(2), previous=of(1)), manifests(2)).previous is None


def test_highest_versions_that_do_not_fit_together_are_refused_only_when_they_are_needed() -> None:
    there = [*manifests(1), model("image_encoder", 2, space=NEW)]

    assert restored("m", Recorded(of(1)), there).current.versions == of(1)
    with pytest.raises(LineupError, match="is of space"):
        restored("m", None, there)
