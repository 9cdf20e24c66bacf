"""The Open Inference Protocol both ways: tritonclient on our server, and a server that is not ours as our encoder."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client, Unavailable
from likewise.export.manifest import Endpoint, TensorSpec, write_manifest
from likewise.export.model_repository import builtin_repository, load_repository
from likewise.export.preprocess import to_tensor
from likewise.export.runtime import load_family

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ROOT / "tests" / "unit" / "server" / "remote" / "foreign_server.py"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}

# Nothing of Likewise is imported here: it is what a user of Triton has already.
TRITON_USER = """
import json, sys
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

address, raw, *pictures = sys.argv[1:]
client = InferenceServerClient(address)

def strings(name, elements):
    made = InferInput(name, [len(elements)], "BYTES")
    values = np.empty(len(elements), object)
    values[:] = elements
    made.set_data_from_numpy(values)
    return made

images = [open(path, "rb").read() for path in pictures]
told = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("shapes-image", "1"),
    "server": client.get_server_metadata(as_json=True),
    "index": client.get_model_repository_index(as_json=True),
    "image": client.infer("shapes-image", [strings("image", images)]).as_numpy("embedding").tolist(),
    "text": client.infer("shapes-text", [strings("text", [b"a red circle"])], model_version="1").as_numpy(
        "embedding"
    ).tolist(),
}
if raw:
    pixels = np.load(raw)
    tensor = InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)
    outputs = [InferRequestedOutput("features")]
    told["pixels"] = client.infer("shapes-image", [tensor], outputs=outputs).as_numpy("features").tolist()
    told["config"] = client.get_model_config("shapes-image", as_json=True)
    told["statistics"] = client.get_inference_statistics("shapes-image", as_json=True)
print(json.dumps(told))
"""


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for name, colour in COLOURS.items():
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (80, 64), colour).save(paths[-1])
    return paths


def triton_user(address: str, pictures: list[Path], *, pixels: Path | None = None) -> dict[str, Any]:
    """What the released client got, in a process of its own."""
    command = [sys.executable, "-I", "-c", TRITON_USER, address, str(pixels or ""), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_the_released_tritonclient_infers_on_our_server(
    server: ServerProcess, mode: str, pictures: list[Path], tmp_path: Path
) -> None:
    family = load_family(None, "shapes")
    opened = [Image.open(path).convert("RGB") for path in pictures]
    pixels = np.stack([to_tensor(image, family.preprocessing) for image in opened])
    np.save(tmp_path / "pixels.npy", pixels)
    # A router over Ray does not run the graphs itself: it takes files and texts.
    embedded = mode == "embedded"

    told = triton_user(server.address, pictures, pixels=tmp_path / "pixels.npy" if embedded else None)

    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert told["server"]["name"] == "likewise"
    states = {(model["name"], model["version"]): model["state"] for model in told["index"]["models"]}
    assert states["shapes-image", "1"] == "READY"
    np.testing.assert_allclose(told["image"], family.encode_images(pixels), atol=1e-4)
    np.testing.assert_allclose(told["text"], family.encode_texts(["a red circle"]), atol=1e-4)
    if embedded:
        np.testing.assert_allclose(told["pixels"], told["image"], atol=1e-4)
        assert told["config"]["config"]["max_batch_size"] == 64
        assert int(told["statistics"]["model_stats"][0]["inference_count"]) >= 2 * len(pictures)


@contextmanager
def foreign(model: Path) -> Iterator[str]:
    """A server that is not ours, in a process of its own, with the graph as "clip"."""
    command = [sys.executable, str(FOREIGN), str(model), "clip"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("serving on ").strip()
        finally:
            process.stdin.close()


def far_repository(folder: Path, address: str, **image: Any) -> Path:
    """The built-in models as the family "far", whose image graph runs at the address."""
    for model in load_repository(builtin_repository()).models:
        name = model.manifest.name.replace("shapes", "far")
        home = folder / name / str(model.manifest.version)
        home.mkdir(parents=True)
        changes: dict[str, Any] = {"name": name, "family": "far"}
        if model.manifest.kind == "image_encoder":
            changes |= {"endpoint": Endpoint(address, "clip"), "files": {}, **image}
        manifest = replace(model.manifest, **changes)
        for file in manifest.files:
            (home / file).write_bytes(model.file(file).read_bytes())
        write_manifest(home / "manifest.json", manifest)
    return folder


def test_a_gallery_is_encoded_by_a_server_that_is_not_ours(mode: str, pictures: list[Path], tmp_path: Path) -> None:
    graph = load_repository(builtin_repository()).latest("shapes-image").file()
    with foreign(graph) as address:
        models = ["--models", str(far_repository(tmp_path / "models", address))]
        with serving(mode, tmp_path / "store", models) as server, Client(server.address) as client:
            near, far = (client.create_gallery(name, encoder=name) for name in ("shapes", "far"))
            for gallery in (near, far):
                gallery.upsert([path.stem for path in pictures], images=pictures)

            found = [far.search(image=path, k=1, include_reference=True).ids for path in pictures]
            conditional = [g.search(image=pictures[0], condition="in blue", k=4) for g in (near, far)]

    assert found == [[path.stem] for path in pictures]
    assert conditional[0].ids == conditional[1].ids
    np.testing.assert_allclose(conditional[0].scores, conditional[1].scores, atol=1e-4)


def test_an_endpoint_with_other_shapes_stops_the_start_and_says_which(pictures: list[Path], tmp_path: Path) -> None:
    graph = load_repository(builtin_repository()).latest("shapes-image").file()
    wrong = (TensorSpec("pixels", "float32", (-1, 3, 224, 224)),)
    with foreign(graph) as address:
        models = far_repository(tmp_path / "models", address, inputs=wrong)
        server = ServerProcess(tmp_path / "store", ["--models", str(models)])
        with pytest.raises(AssertionError):
            server.start()
        server.terminate()

    log = "\n".join(server.log)
    assert f"endpoint {address}, model 'clip': input 'pixels' is FP32[-1, 3, 64, 64] there" in log
    assert "the manifest wants FP32[-1, 3, 224, 224]" in log
    assert "Traceback" not in log


def test_an_endpoint_that_goes_away_fails_its_queries_as_unavailable_and_no_others(
    pictures: list[Path], tmp_path: Path
) -> None:
    graph = load_repository(builtin_repository()).latest("shapes-image").file()
    endpoint = ExitStack()
    address = endpoint.enter_context(foreign(graph))
    models = ["--models", str(far_repository(tmp_path / "models", address))]
    with (
        endpoint,
        serving("embedded", tmp_path / "store", models) as server,
        Client(server.address, timeout=20) as client,
    ):
        near, far = (client.create_gallery(name, encoder=name) for name in ("shapes", "far"))
        for gallery in (near, far):
            gallery.upsert(["red"], images=[pictures[0]])

        endpoint.close()

        with pytest.raises(Unavailable, match="the endpoint of the model far-image/1 does not answer"):
            far.search(image=pictures[0])
        assert far.search(condition="a red circle").ids == ["red"]
        assert near.search(image=pictures[0], include_reference=True).ids == ["red"]
