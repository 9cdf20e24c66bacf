"""Triton's repository calls in our terms."""

from collections.abc import Sequence

import pytest

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, NotFound
from likewise.server.remote.inference_repository import (
    check_name,
    index,
    ready,
    version_number,
    version_to_load,
    versions_to_unload,
)
from likewise.v1 import model_service_pb2 as models

AVAILABLE, LOADING, READY = models.MODEL_STATE_AVAILABLE, models.MODEL_STATE_LOADING, models.MODEL_STATE_READY
DRAINING, FAILED = models.MODEL_STATE_DRAINING, models.MODEL_STATE_FAILED


def model(
    state: "models.ModelState.ValueType", version: int = 1, *, in_use: bool = False, name: str = "m"
) -> models.Model:
    return models.Model(
        name=name, version=version, state=state, in_use=in_use, reason="broken" if state == FAILED else ""
    )


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param([], True, id="no models"),
        pytest.param([model(READY, in_use=True)], True, id="in use and ready"),
        pytest.param([model(FAILED, in_use=True)], False, id="in use and failed"),
        pytest.param([model(LOADING, in_use=True)], False, id="in use and loading"),
        pytest.param([model(AVAILABLE, in_use=True)], False, id="in use and never opened"),
        pytest.param([model(READY, in_use=True), model(FAILED, 2)], True, id="another version failed"),
        pytest.param([model(FAILED, in_use=True), model(READY, 2)], False, id="another version is ready"),
        pytest.param(
            [model(READY, in_use=True), model(FAILED, name="n", in_use=True)], False, id="another model failed"
        ),
        pytest.param([model(AVAILABLE)], True, id="nobody wanted it"),
        pytest.param([model(FAILED), model(AVAILABLE, 2)], False, id="failed, and nothing says what is in use"),
    ],
)
def test_a_server_is_ready_when_every_model_in_use_is(known: Sequence[models.Model], expected: bool) -> None:
    assert ready(known) is expected


def test_the_index_has_tritons_words_and_the_reasons() -> None:
    states = (AVAILABLE, LOADING, READY, DRAINING, FAILED)
    known = [model(state, version) for version, state in enumerate(states, 1)]

    assert [(m.version, m.state, m.reason) for m in index(known, ready=False).models] == [
        ("1", "UNAVAILABLE", "not loaded"),
        ("2", "LOADING", ""),
        ("3", "READY", ""),
        ("4", "UNLOADING", ""),
        ("5", "UNAVAILABLE", "broken"),
    ]
    assert [m.version for m in index(known, ready=True).models] == ["3"]


def test_unloading_a_model_frees_what_is_not_in_use_and_asks_for_the_rest_only_when_that_is_all() -> None:
    in_use, loaded, absent = model(READY, 1, in_use=True), model(READY, 2), model(AVAILABLE, 3)

    assert versions_to_unload([in_use, loaded, absent]) == [2]
    assert versions_to_unload([in_use, absent]) == [1]
    assert versions_to_unload([absent]) == []


@pytest.mark.parametrize(("text", "expected"), [("", None), ("1", 1), ("012", 12)])
def test_a_version_is_a_number_or_the_servers_choice(text: str, expected: int | None) -> None:
    assert version_number(text) == expected


@pytest.mark.parametrize("text", ["latest", "-1", "1.0", "²", "9" * 30])
def test_a_version_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a whole number from 1"):
        version_number(text)


def config(text: str) -> dict[str, pb.ModelRepositoryParameter]:
    return {"config": pb.ModelRepositoryParameter(string_param=text)}


def test_a_load_names_no_version_or_one() -> None:
    assert version_to_load({}) is None
    assert version_to_load(config('{"name": "m", "version_policy": {"specific": {"versions": [7]}}}')) == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version_policy": {"latest": {"num_versions": 2}}}',
        '{"version_policy": {"specific": {"versions": []}}}',
        '{"version_policy": {"specific": {"versions": [0]}}}',
        '{"version_policy": {"specific": {"versions": [true]}}}',
        '{"version_policy": {"specific": {"versions": [1]}}, "backend": "python"}',
        "[" * 100_000,
    ],
)
def test_a_load_that_asks_for_more_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="the parameter 'config'"):
        version_to_load(config(text))


def test_a_repository_by_name_is_not_found() -> None:
    check_name("")
    with pytest.raises(NotFound, match="leave repository_name empty"):
        check_name("main")
