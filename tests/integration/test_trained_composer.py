"""A folder of 1,000 captioned images to a served composer, on attributes that the built-in model was never shown."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from tests.integration.processes import serving
from tests.unit.export.training import scene_templates
from tests.unit.export.training.scenes import COLOURS, Scene, draw, edit, place, sample_scene, write_folder

torch = pytest.importorskip("torch")

from typer.testing import CliRunner  # noqa: E402 - only where torch is installed

from likewise.cli.train import app  # noqa: E402
from likewise.client import Client  # noqa: E402
from likewise.export.evaluate import Features, query_scores, unit, worst_ranks  # noqa: E402
from likewise.export.preprocess import to_tensor  # noqa: E402
from likewise.export.runtime import OnnxFamily, load_family  # noqa: E402
from likewise.export.training.measure import BASELINES, Report, measure  # noqa: E402
from likewise.export.training.wording import framed  # noqa: E402

pytestmark = pytest.mark.slow

F32 = npt.NDArray[np.float32]

IMAGES: Final = 1000
TEMPLATES: Final = 60
# The tests' small form: a few hundred steps on small pictures, some minutes of one core.
SMALL: Final = (
    "--encoders", "fine-tune", "--encoder-steps", "150", "--batch", "32", "--steps", "400", "--views", "3",
    "--threads", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What the command left and said."""

    repository: Path
    printed: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(1)
    write_folder(folder / "pictures", [sample_scene(rng) for _ in range(IMAGES)], rng)
    arguments = [str(folder / "pictures"), "--out", str(folder / "models"), "--name", "scenes", *SMALL, "--json"]
    before = torch.get_num_threads()
    try:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert result.exit_code == 0, result.output
    return Trained(folder / "models", json.loads(result.stdout))


@pytest.fixture(scope="module")
def report(trained: Trained) -> Report:
    """The exported family on fresh scenes, by templates that know what was drawn."""
    family = load_family(trained.repository, "scenes")
    tasks = {
        task: _features(family, scene_templates.build(task, TEMPLATES, seed=0)) for task in scene_templates.CANDIDATES
    }

    def ranks(features: Features) -> npt.NDArray[np.int64]:
        query = family.compose(features.references, features.composed)
        return worst_ranks(query_scores(query, features.candidates), features.targets)

    return measure(tasks, ranks)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_trained_composer_beats_the_baseline_on_held_out_templates(report: Report, baseline: str) -> None:
    margin = report.margin[baseline]

    assert margin.low > 0, f"{margin} over {baseline}: {report.summary()}"


def test_the_command_reports_the_same_victory_on_templates_of_its_own_held_out_images(trained: Trained) -> None:
    margins = trained.printed["report"]["margin"]

    assert {name: value["low"] > 0 for name, value in margins.items()} == dict.fromkeys(BASELINES, True)


def test_every_kind_of_triplet_was_mined_from_free_wording(trained: Trained) -> None:
    survey = trained.printed["survey"]
    attributes = {slot["name"]: set(slot["values"]) for slot in survey["attributes"]}

    assert min(survey["triplets"].values()) > 300
    assert set(COLOURS) <= attributes["colour"]
    assert trained.printed["unknown words"] == []


def test_the_trained_family_is_served_and_a_condition_is_followed(trained: Trained, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    reference = sample_scene(rng, second=False)
    wanted = [place(rng, edit(reference, "colour", colour)) for colour in COLOURS for _ in range(3)]
    scenes = [*wanted, *(sample_scene(rng) for _ in range(80))]
    goal = next(colour for colour in COLOURS if colour != reference.things[0].colour)

    with (
        serving("embedded", arguments=["--models", str(trained.repository)]) as server,
        Client(server.address) as client,
    ):
        gallery = client.create_gallery("scenes", encoder="scenes", shards=2)
        gallery.upsert([f"s{i:03}" for i in range(len(scenes))], images=[_png(scene) for scene in scenes])
        hits = gallery.search(image=_png(reference), condition=goal, mode="change", k=3)

    found = [scenes[int(hit.id[1:])] for hit in hits]
    assert [scene.value("colour") for scene in found].count(goal) >= 2
    assert [scene.value("shape") for scene in found].count(reference.value("shape")) >= 2


def _features(family: OnnxFamily, templates: Sequence[scene_templates.Template]) -> Features:
    scenes = [scene for t in templates for scene in (t.reference, *t.candidates)]
    encoded = [
        family.encode_images(np.stack([to_tensor(draw(scene), family.preprocessing) for scene in scenes[i : i + 200]]))
        for i in range(0, len(scenes), 200)
    ]
    images = np.concatenate(encoded).reshape(len(templates), len(templates[0].candidates) + 1, -1)
    return Features(
        references=np.ascontiguousarray(images[:, 0]),
        candidates=unit(images[:, 1:]),
        targets=np.asarray([t.target for t in templates]),
        bare=family.encode_texts([t.text for t in templates]),
        composed=family.encode_texts([framed(t.mode, t.text) for t in templates]),
        clusters=np.arange(len(templates)),
    )


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    draw(scene).save(buffer, "PNG")
    return buffer.getvalue()
