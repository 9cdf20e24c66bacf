import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch")

from tests.unit.export import own_models  # noqa: E402
from tests.unit.export.torchvision_operators import make_torchvision_importable  # noqa: E402

make_torchvision_importable()

from likewise.cli.export import app  # noqa: E402
from likewise.export.combiner import Combiner, CombinerConfig  # noqa: E402
from likewise.export.tokenizer import write_word_tokenizer  # noqa: E402

_HERE = "tests.unit.export.own_models"
_IMAGE = f"pixels: float32[b, 3, {own_models.SIZE}, {own_models.SIZE}] -> features: float32[b, {own_models.DIM}]"
_TEXT = f"ids: int32[b, {own_models.LENGTH}] -> features: float32[b, {own_models.DIM}]"
_PREPROCESS = json.dumps({"size": own_models.SIZE})


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _refused(*arguments: object) -> str:
    done = _run(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return str(done.stderr)


def _module(repository: Path, *further: object) -> tuple[object, ...]:
    return (
        "module",
        f"{_HERE}:Pixels",
        "--signature",
        _IMAGE,
        "--family",
        "mine",
        "--preprocess",
        _PREPROCESS,
        "--out",
        repository,
        "--max-batch",
        8,
        *further,
    )


def test_a_family_of_ones_own_is_made_in_three_commands(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_word_tokenizer(tmp_path / "words.json", ["a dog two cats on the beach"])
    torch.save(Combiner(CombinerConfig(dim=own_models.DIM, projection=20, hidden=40)).state_dict(), tmp_path / "c.pt")

    image = _run(*_module(models, "--json"))
    text = (
        "module",
        f"{_HERE}:Words",
        "--signature",
        _TEXT,
        "--family",
        "mine",
        "--tokenizer",
        tmp_path / "words.json",
    )
    assert _run(*text, "--out", models, "--max-batch", 8).exit_code == 0
    composer = _run("composer", tmp_path / "c.pt", "--family", "mine", "--out", models, "--template", "focus=same {}")

    (row,) = json.loads(image.stdout)["models"]
    assert (row["name"], row["version"], row["kind"], row["dim"]) == ("mine-image", 1, "image_encoder", own_models.DIM)
    assert row["parity"]["lowest_cosine"] > 0.99999
    assert row["bytes"] == (models / "mine-image" / "1" / "model.onnx").stat().st_size
    assert composer.exit_code == 0
    assert "mine-composer" in composer.stdout
    assert f"likewise serve --models {models}" in composer.stdout


def test_compatible_spaces_and_precision_reach_the_manifest(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64

    done = _run(*_module(tmp_path / "m", "--precision", "fp16", "--compatible-with", f"{digest}:6", "--version", 3))

    manifest: dict[str, Any] = json.loads((tmp_path / "m" / "mine-image" / "3" / "manifest.json").read_text())
    assert done.exit_code == 0
    assert (manifest["precision"], manifest["compatible_with"]) == ("fp16", {digest: 6})


@pytest.mark.parametrize(
    ("further", "message"),
    [
        pytest.param(["--precision", "fp8"], "precision must be one of fp32, fp16, int8, got 'fp8'", id="precision"),
        pytest.param(["--compatible-with", "sha256:1"], "takes DIGEST:DIMS", id="space"),
        pytest.param(["--preprocess", "{"], "--preprocess is no JSON", id="json"),
        pytest.param(["--preprocess", "[1]"], "takes a JSON object", id="not an object"),
        pytest.param(["--signature", "x"], "cannot be read from 'x'", id="signature"),
        pytest.param(["--template", "focus"], "takes MODE=TEXT", id="template"),
        pytest.param(["--weights", "nowhere.pt"], "nowhere.pt: there is no such file", id="weights"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(tmp_path: Path, further: list[str], message: str) -> None:
    assert message in _refused(*_module(tmp_path / "m", *further))
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_there_is_not_written_over_unless_asked_for(tmp_path: Path) -> None:
    assert _run(*_module(tmp_path / "m", "--version", 1)).exit_code == 0

    assert "mine-image/1 is there already" in _refused(*_module(tmp_path / "m", "--version", 1))
    assert _run(*_module(tmp_path / "m", "--version", 1, "--overwrite")).exit_code == 0


def test_a_composer_for_a_repository_that_is_not_there_is_refused(tmp_path: Path) -> None:
    torch.save(Combiner(CombinerConfig(dim=4, projection=4, hidden=4)).state_dict(), tmp_path / "c.pt")

    said = _refused("composer", tmp_path / "c.pt", "--family", "mine", "--out", tmp_path / "m")

    assert f"no model repository at {tmp_path / 'm'}" in said


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    assert "its configuration cannot be loaded" in _refused("transformers", tmp_path, "--out", tmp_path / "m")
