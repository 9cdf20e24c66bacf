"""The parts of the encoder benchmark that can be wrong without anybody noticing."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from likewise.cli.bench import app
from likewise.cli.benchmark.encode_load import within
from likewise.cli.benchmark.encode_model import ModelPlan, _pictures, batches_between, histogram
from likewise.cli.benchmark.encode_raw import RawFailed, run_raw
from likewise.cli.benchmark.vit import SIZES, vit, write_vit
from likewise.export.model_repository import load_repository
from likewise.server.batcher import BatchReport
from likewise.server.metrics import Metrics


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_random_transformer_takes_any_batch_and_rows_do_not_mix(batch: int) -> None:
    size = SIZES["vit-tiny"]
    graph = vit(size, np.random.default_rng(0))
    onnx.checker.check_model(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).standard_normal((batch, 3, size.image, size.image)).astype(np.float32)

    (features,) = session.run(["features"], {"pixels": pixels})

    assert features.shape == (batch, size.dim)
    assert np.isfinite(features).all()
    (alone,) = session.run(["features"], {"pixels": pixels[-1:]})
    np.testing.assert_allclose(features[-1:], alone, atol=1e-5)


def test_the_large_transformer_has_the_parameters_of_clips_vit_b_32() -> None:
    size = SIZES["vit-b-32"]
    # 87.8 million without its text tower (Radford et al. 2021, table 19 and the released weights).
    block = 12 * size.width**2 + 9 * size.width
    others = 3 * size.patch**2 * size.width + size.tokens * size.width + size.width * size.dim

    assert size.layers * block + others == pytest.approx(87.8e6, rel=0.01)


def test_the_written_family_is_a_model_repository(tmp_path: Path) -> None:
    write_vit(tmp_path, "vit-tiny", max_batch=8)

    (model,) = load_repository(tmp_path).models

    assert (model.manifest.name, model.manifest.family, model.manifest.max_batch) == ("vit-tiny-image", "vit-tiny", 8)


def test_a_call_counts_by_its_share_of_the_measured_time() -> None:
    calls = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (7.0, 9.0)]

    measured = within(calls, 1.0, 5.0)

    # Half of the first, the whole second, half of the third, nothing of the last: 2 calls in 4 s.
    assert measured.qps == pytest.approx(0.5)
    assert measured.p50_ms == 2000
    with pytest.raises(ValueError, match="no call between"):
        within(calls, 20.0, 30.0)


def test_histograms_are_read_from_a_scrape_as_the_server_writes_them() -> None:
    metrics = Metrics(version="1")
    before = generate_latest(metrics.registry).decode()
    metrics.model_batch(BatchReport("m/1", waiting=0, queue_s=(0.002,) * 3, run_s=0.2, failed=False))
    first = generate_latest(metrics.registry).decode()
    metrics.model_batch(BatchReport("m/1", waiting=0, queue_s=(0.004,), run_s=0.1, failed=False))
    metrics.model_batch(BatchReport("other/1", waiting=0, queue_s=(9.0,), run_s=9.0, failed=False))
    after = generate_latest(metrics.registry).decode()

    assert histogram(after, "likewise_batch_size", "m/1").counts == {4.0: 1, 1.0: 1}
    assert batches_between(first, after, "m/1") == {
        "batches_up_to": {"1": 1},
        "mean_batch": 1.0,
        "mean_queue_ms": 4.0,
        "mean_run_ms": 100.0,
    }
    assert batches_between(before, after, "m/1")["mean_batch"] == 2.0


def test_raw_speeds_come_from_a_process_of_its_own(tmp_path: Path) -> None:
    write_vit(tmp_path / "models", "vit-tiny")
    pictures = _pictures(tmp_path, ModelPlan(pictures=2))

    graph, whole = run_raw(tmp_path / "models", pictures, threads=1, measure_s=0.05)

    assert graph.qps > whole.qps > 0
    with pytest.raises(RawFailed, match=r"missing\.jpg"):
        run_raw(tmp_path / "models", [tmp_path / "missing.jpg"], threads=1, measure_s=0.05)


def test_a_model_that_is_not_known_is_refused() -> None:
    result = CliRunner().invoke(app, ["encode", "--model", "vit-z"])

    assert result.exit_code == 2
    assert "vit-b-32" in result.output
