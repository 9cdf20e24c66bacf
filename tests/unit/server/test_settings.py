"""Where options come from and what is refused."""

import json
import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from likewise.server import plan
from likewise.server.access_log import CallRecord, JsonFormatter, TextFormatter
from likewise.server.embedded import runtime
from likewise.server.session import CPU, CUDA, Runtime
from likewise.server.settings import Settings, unknown_variables
from likewise.v1 import search_service_pb2 as pb


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"LIKEWISE_{field.upper()}", raising=False)


def test_the_defaults_are_a_local_server() -> None:
    settings = Settings()

    assert (settings.host, settings.port, settings.store) == ("127.0.0.1", 50051, "./likewise-store")
    assert settings.metrics_port is None
    assert settings.thread_count >= 1


def test_an_option_beats_the_environment_which_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_PORT", "1234")
    monkeypatch.setenv("LIKEWISE_STORE", "/data")

    settings = Settings(port=4321)

    assert (settings.port, settings.store) == (4321, "/data")


def test_model_folders_are_separated_by_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_MODELS", "/models/a,/models/b")

    assert Settings().models == (Path("/models/a"), Path("/models/b"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"port": 70_000}, id="port too large"),
        pytest.param({"port": -1}, id="port negative"),
        pytest.param({"threads": 0}, id="no threads"),
        pytest.param({"log_format": "xml"}, id="unknown format"),
        pytest.param({"colour": "red"}, id="unknown option"),
        pytest.param({"store": ""}, id="no store"),
        pytest.param({"encoder_device": "gpu"}, id="unknown device"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**options)  # type: ignore[arg-type]


def test_a_gpu_is_asked_for_by_one_option_and_never_silently_replaced() -> None:
    assert runtime(Settings(threads=3)) == Runtime((CPU,), threads=3)

    on_gpu = runtime(Settings(threads=3, encoder_device="cuda", encoder_gpu=1, encoder_gpu_bytes=1 << 30))

    assert on_gpu == Runtime((CUDA, CPU), threads=3, allow_fallback=False, device_id=1, gpu_memory_bytes=1 << 30)
    assert runtime(Settings(encoder_device="cuda", encoder_fallback=True)).allow_fallback


def test_threads_follow_the_quota_of_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.server.settings.usable_processors", lambda: 3)

    assert Settings().thread_count == 3
    assert Settings(threads=7).thread_count == 7


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_every_option_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_misspelt_variables_are_found() -> None:
    assert unknown_variables(["LIKEWISE_PORT", "LIKEWISE_PROT", "PATH"]) == ["LIKEWISE_PROT"]


def _record(call: CallRecord) -> logging.LogRecord:
    record = logging.LogRecord("likewise.access", logging.INFO, "", 0, "call", None, None)
    record.call = call
    return record


CALL = CallRecord(request_id="r1", method="likewise.v1.SearchService/Search", code="OK", duration_ms=1.25, k=3, hits=0)


def test_a_json_line_holds_what_was_filled_in_and_nothing_else() -> None:
    line = json.loads(JsonFormatter().format(_record(CALL)))

    assert {key: line[key] for key in ("request_id", "code", "duration_ms", "k", "hits")} == {
        "request_id": "r1",
        "code": "OK",
        "duration_ms": 1.25,
        "k": 3,
        "hits": 0,
    }
    assert "gallery" not in line
    assert "plan" not in line


def test_a_text_line_quotes_what_a_caller_could_break_it_with() -> None:
    line = TextFormatter().format(_record(CallRecord(request_id='a b"\n', code="OK")))

    assert "\n" not in line
    assert r'request_id="a b\"\n"' in line


@pytest.mark.parametrize(
    ("shards", "filtered", "expected"),
    [
        pytest.param(
            [pb.ShardPlan(kind=pb.PLAN_KIND_EXACT_FILTERED, live=50_000, allowed=512)],
            True,
            "exact over 512 of 50,000 (filter 1.0 %)",
            id="exact under a filter",
        ),
        pytest.param(
            [pb.ShardPlan(kind=pb.PLAN_KIND_ANN, live=60_000, allowed=60_000, ef=64)],
            False,
            "approximate over 60,000, ef 64",
            id="approximate",
        ),
        pytest.param(
            [pb.ShardPlan(kind=pb.PLAN_KIND_ANN_FILTERED, live=60_000, allowed=20_000, ef=15, partial_index=True)],
            True,
            "approximate over 20,000 of 60,000 (filter 33.3 %), ef 15, partial index",
            id="an index of the filter's own",
        ),
        pytest.param(
            [
                pb.ShardPlan(kind=pb.PLAN_KIND_ANN_FILTERED, live=60_000, allowed=20_000, ef=15, partial_index=True),
                pb.ShardPlan(kind=pb.PLAN_KIND_ANN_FILTERED, live=60_000, allowed=20_000, ef=45),
            ],
            True,
            "approximate over 40,000 of 120,000 (filter 33.3 %), ef 45, partial index on 1, 2 shards",
            id="an index of the filter's own on one shard",
        ),
        pytest.param(
            [
                pb.ShardPlan(kind=pb.PLAN_KIND_ANN_FILTERED, live=60_000, allowed=3, ef=64, fallback=True),
                pb.ShardPlan(kind=pb.PLAN_KIND_EXACT_FILTERED, live=60_000, allowed=3),
                pb.ShardPlan(kind=pb.PLAN_KIND_EMPTY),
            ],
            True,
            "approximate on 1 and exact on 1 over 6 of 120,000 (filter 0.005 %), ef 64, "
            "1 came short, searched exactly, 3 shards",
            id="mixed",
        ),
        pytest.param([pb.ShardPlan(kind=pb.PLAN_KIND_EMPTY)], False, "nothing to search over 0", id="empty"),
    ],
)
def test_a_plan_is_told_in_one_line(shards: list[pb.ShardPlan], filtered: bool, expected: str) -> None:
    assert plan.summary(shards, filtered=filtered) == expected
