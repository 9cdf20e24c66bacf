import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from likewise.export.preprocess import Preprocessing
from likewise.export.shapes import benchmark
from likewise.export.shapes.templates import CANDIDATES


class _ConstantModel:
    preprocessing = Preprocessing(size=8)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        return np.ones((len(images), 4), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 4), np.float32)

    def compose(self, references: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        return np.full((len(references), 4), 0.5, np.float32)


def test_a_model_that_sees_nothing_scores_nothing() -> None:
    report = benchmark.measure(_ConstantModel(), templates_per_task=5, designs=("strict",), splits=("seen",))

    part = report.part("strict", "seen")
    assert {m: part.mean[m].value for m in benchmark.METHODS} == dict.fromkeys(benchmark.METHODS, 0.0)
    assert part.margin.value == 0


def test_the_report_is_json_and_names_chance_of_every_task() -> None:
    report = benchmark.measure(_ConstantModel(), templates_per_task=3, designs=("soft",), splits=("seen",))

    content = json.loads(json.dumps(report.to_json()))

    tasks = {task["task"]: task for task in content["parts"][0]["tasks"]}
    assert list(tasks) == list(CANDIDATES)
    assert tasks["focus_attribute"]["chance"]["1"] == pytest.approx(10)
    assert tasks["change_object"]["chance"]["3"] == pytest.approx(20)


def test_progress_starts_at_zero_and_ends_at_one() -> None:
    seen: list[float] = []

    benchmark.measure(
        _ConstantModel(),
        templates_per_task=1,
        designs=("strict",),
        splits=("seen",),
        progress=lambda _, share: seen.append(share),
    )

    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1)


def test_the_built_in_model_answers_the_four_tasks() -> None:
    report = benchmark.run(templates_per_task=50, designs=("strict",), splits=("held-out",))

    part = report.part("strict", "held-out")
    # A gate against a broken model or preprocessing, well below the published figures: 50 templates a task are few.
    assert part.mean["composer"].value >= 75
    assert part.margin.value >= 10
    for task in part.tasks:
        assert task.methods["composer"].at[1].value >= 35, task.task


def test_the_benchmark_needs_no_torch() -> None:
    import subprocess

    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from likewise.export.shapes import benchmark\n"
        "from likewise.export import manifest, model_repository, preprocess, tokenizer, runtime\n"
        "assert not any(name.startswith('torch.') for name in sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_the_server_imports_needs_neither_torch_nor_onnxruntime() -> None:
    import subprocess

    program = (
        "import sys\n"
        "from likewise.export import manifest, model_repository, preprocess, tokenizer\n"
        "assert not {'torch', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
