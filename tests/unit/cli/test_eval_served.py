"""What is measured through an embedded server with the built-in model is what its features say."""

import asyncio
import io
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.export.evaluation.folders import cut, object_template, write_csv, write_features, write_json
from typer.testing import CliRunner

from likewise.cli import evaluate
from likewise.client import Client
from likewise.export.evaluation.cirr import read_cirr
from likewise.export.evaluation.genecis import read_genecis
from likewise.export.evaluation.pictures import find_pictures
from likewise.export.evaluation.task import Benchmark
from likewise.export.shapes.world import COLOURS, TRAINING_PAIRS, render, sample_scene
from likewise.server.embedded import running_server

IMAGES = 24
CONDITIONS = [f"in {colour}" for colour in COLOURS] + ["with a star", "the same background"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An embedded server on a loop of its own, as the command line is synchronous."""
    addresses: queue.Queue[str] = queue.Queue()
    stop = threading.Event()

    async def serve() -> None:
        async with running_server(store=str(tmp_path_factory.mktemp("store")), threads=1) as own:
            addresses.put(own)
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield addresses.get(timeout=60)
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as COCO and Visual Genome would have them: whole images 100 to 123, and larger ones 1 to 6."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for number in range(IMAGES):
        scene = sample_scene(rng, sorted(TRAINING_PAIRS))
        render(scene, 96).save(folder / f"{100 + number:012d}.jpg", quality=95)
    (folder / "VG_100K_all").mkdir()
    for number in range(1, 7):
        render(sample_scene(rng, sorted(TRAINING_PAIRS)), 160).save(
            folder / "VG_100K_all" / f"{number}.jpg", quality=95
        )
    return folder


def _genecis(folder: Path) -> Path:
    rng = np.random.default_rng(9)
    objects, attributes = [], []
    for number in range(40):
        reference, target, *rest = (100 + int(image) for image in rng.choice(IMAGES, size=8, replace=False))
        objects.append(object_template(reference, CONDITIONS[number % len(CONDITIONS)], target, rest))
        boxes = [
            [int(x), int(y), int(w), int(h)] for x, y, w, h in rng.integers((0, 0, 20, 20), (90, 90, 60, 40), (6, 4))
        ]
        crops = [cut(1 + int(image), box) for image, box in zip(rng.permutation(6), boxes, strict=True)]
        attributes.append({"reference": crops[0], "condition": "colour", "target": crops[1], "gallery": crops[2:]})
    # A contradictory one, as the official file has it.
    objects.append(object_template(101, "in red", 102, [103, 102]))
    write_json(folder / "change_object.json", objects)
    write_json(folder / "focus_attribute.json", attributes)
    return folder


def _features(address: str, folder: Path, benchmark: Benchmark, images: Path) -> list[object]:
    """Features of the server's own model, fetched back raw."""
    found = find_pictures(benchmark, (key for task in benchmark.tasks for key in task.image_keys()), [images])
    texts = sorted({text for task in benchmark.tasks for every in task.conditions for text in every})
    framed = [*texts, *(f"same {text}" for text in texts), *(f"now {text}" for text in texts)]
    rows: dict[str, tuple[list[str], dict[str, Any]]] = {
        "key": (list(found), {"images": [picture.read() for picture in found.values()]}),
        "text": (framed, {"texts": framed}),
    }
    arguments: list[object] = []
    with Client(address) as client:
        for column, (ids, content) in rows.items():
            gallery = client.create_gallery(f"features-{column}", encoder="shapes")
            gallery.upsert(ids, progress=False, **content)
            items = gallery.get(ids, vectors=True)
            vectors = {item.id: item.vector for item in items if item.vector is not None}
            client.delete_gallery(gallery.name)
            path = write_features(folder / f"{column}.parquet", vectors, column)
            arguments += ["--image-features" if column == "key" else "--text-features", path]
    return arguments


def _run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(evaluate.app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, " ".join(done.stderr.replace("│", " ").split()) + repr(done.exception or "")


def _composers(*names: str) -> list[str]:
    return [word for name in names for word in ("--composer", name)]


def _galleries(address: str) -> list[str]:
    with Client(address) as client:
        return [info.name for info in client.galleries()]


@pytest.mark.parametrize("mode", ["none", "task"])
def test_genecis_has_the_same_figures_from_features_and_through_the_server(
    address: str, pictures: Path, tmp_path: Path, mode: str
) -> None:
    folder = _genecis(tmp_path)
    features = _features(address, tmp_path, read_genecis(folder), pictures)
    base = ["genecis", "--annotations", folder, "--mode", mode, "--json"]

    code, served, err = _run(
        *base,
        "--server",
        address,
        "--images",
        pictures,
        *_composers("served", "image", "text"),
    )
    assert code == 0, err
    _, computed, _ = _run(*base, *features, *_composers("shapes-composer", "image", "text"))

    left, right = json.loads(served), json.loads(computed)
    for one, other in zip([left, *left["others"]], [right, *right["others"]], strict=True):
        assert one["tasks"] == other["tasks"]
        assert one["mean"] == other["mean"]
    assert left["tasks"]["change_object"]["slices"]["without_contradictory"]["n"] == 40
    assert left["how"]["compositions"] == ["composer shapes-composer/1 over stored vector + 1 text condition"]
    assert "shapes-composer/1" in left["how"]["models"]
    assert not any(name.startswith("eval-") for name in _galleries(address))


def _cirr(folder: Path, images: Path) -> Path:
    names = {f"n{number:02d}": f"./{number:012d}.jpg" for number in range(100, 100 + IMAGES)}
    ordered = sorted(names)
    rng = np.random.default_rng(2)
    entries = []
    for query in range(30):
        members = [ordered[number] for number in rng.choice(IMAGES, size=6, replace=False)]
        entries.append(
            {
                "pairid": query,
                "reference": members[0],
                "target_hard": members[1],
                "caption": " " if query == 3 else CONDITIONS[query % len(CONDITIONS)],
                "img_set": {"members": members},
            }
        )
    write_json(folder / "cap.rc2.val.json", entries)
    write_json(folder / "split.rc2.val.json", names)
    return folder


def test_cirr_has_the_same_figures_from_features_and_through_the_server(
    address: str, pictures: Path, tmp_path: Path
) -> None:
    folder = _cirr(tmp_path, pictures)
    features = _features(address, tmp_path, read_cirr(folder), pictures)

    code, served, err = _run("cirr", "--annotations", folder, "--server", address, "--images", pictures, "--json")
    assert code == 0, err
    _, computed, _ = _run("cirr", "--annotations", folder, *features, "--composer", "shapes-composer", "--json")

    assert json.loads(served)["tasks"] == json.loads(computed)["tasks"]
    assert json.loads(served)["tasks"]["val"]["candidates"] == IMAGES - 1


def test_equal_pictures_tie_and_count_against_the_target(address: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    keys = [f"k{number}" for number in range(9)]
    for key in keys:
        (tmp_path / f"{key}.png").write_bytes(buffer.getvalue())
    rows = [{"reference": "k0", "target": "k1", "condition": "in red", "gallery": keys[1:], "task": "own"}]
    rows += [{"reference": "k0", "target": "k1", "condition": "in red", "task": "all"}]
    path = write_json(
        tmp_path / "t.json",
        {"format": "likewise-templates/1", "templates": rows, "images": {k: f"{k}.png" for k in keys}},
    )

    code, out, err = _run(
        "templates", "--annotations", path, "--server", address, "--images", tmp_path, "--cutoffs", "1,3,7", "--json"
    )

    assert code == 0, err
    for task in json.loads(out)["tasks"].values():
        assert [task[f"R@{k}"] for k in (1, 3, 7)] == [0, 0, 0]


def test_landmarks_are_measured_through_the_server(address: str, pictures: Path, tmp_path: Path) -> None:
    # Every test image is a copy of one training and one index image, so that its nearest one is right.
    names = sorted(path.name for path in pictures.glob("*.jpg"))[:8]
    for part, letter in (("test", "t"), ("index", "i"), ("train", "r")):
        for number, name in enumerate(names):
            key = f"{letter}ab{number}"
            target = tmp_path / part / key[0] / key[1] / key[2] / f"{key}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((pictures / name).read_bytes())
    numbers = range(len(names))
    write_csv(
        tmp_path / "retrieval_solution_v2.1.csv",
        [{"id": f"tab{n}", "images": f"iab{n}", "Usage": "Public"} for n in numbers],
    )
    write_csv(
        tmp_path / "recognition_solution_v2.1.csv",
        [{"id": f"tab{n}", "landmarks": n, "Usage": "Public"} for n in numbers],
    )
    write_csv(tmp_path / "train.csv", [{"id": f"rab{n}", "url": "", "landmark_id": n} for n in numbers])

    code, out, err = _run(
        *("gldv2", "--annotations", tmp_path, "--server", address, "--images", tmp_path, "--json"),
        *("--tasks", "retrieval,recognition", "--neighbours", 1),
    )

    assert code == 0, err
    tasks = json.loads(out)["tasks"]
    assert tasks["retrieval public"]["mAP@100"] == 100
    assert tasks["recognition public"]["top-1"] == 100


def test_a_named_gallery_is_kept_and_filled_once(address: str, pictures: Path, tmp_path: Path) -> None:
    folder = _genecis(tmp_path)
    base = ["genecis", "--annotations", folder, "--tasks", "object", "--server", address, "--json"]
    name = "kept"

    code, first, err = _run(*base, "--gallery", name, "--images", pictures, "--encoder", "shapes")
    assert code == 0, err
    code, second, err = _run(*base, "--gallery", name)  # no images are needed any more
    assert code == 0, err
    assert json.loads(first)["tasks"] == json.loads(second)["tasks"]
    assert name in _galleries(address)

    cirr = _cirr(tmp_path / "cirr", pictures)
    code, _, err = _run("cirr", "--annotations", cirr, "--server", address, "--gallery", name)
    assert code == 1
    assert "have to be ingested: give their folder with --images" in err
    with Client(address) as client:
        client.gallery(name).delete(["100"])
        client.create_gallery("plain", encoder="shapes")
    code, _, err = _run(*base, "--gallery", "plain")
    assert (code, "has no attribute 'key'" in err) == (1, True)
    code, _, err = _run(*base, "--gallery", name, "--encoder", "clip")
    assert (code, "is encoded by 'shapes', not 'clip'" in err) == (1, True)
    with Client(address) as client:
        client.delete_gallery(name)
        client.delete_gallery("plain")


def test_a_gallery_filled_for_another_benchmark_is_refused(address: str, pictures: Path, tmp_path: Path) -> None:
    folder = _cirr(tmp_path, pictures)
    base = ["cirr", "--annotations", folder, "--server", address, "--gallery", "one", "--images", pictures]
    assert _run(*base)[0] == 0
    with Client(address) as client:
        gallery = client.gallery("one")
        gallery.upsert(["extra"], texts=["a star"], attributes=[{"key": "extra", "pools": ["val"]}])
        gallery.count()  # from here on others see it too

    code, _, err = _run(*base)

    assert code == 1
    assert "has 25 items marked as candidates of 'val', the annotations have 24" in err
    with Client(address) as client:
        client.delete_gallery("one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--images", "/nowhere"], "no folder /nowhere: give --images"),
        ([], "images have to be ingested: give their folder with --images"),
        (["--encoder", "clip"], "the server has no image encoder 'clip', only 'shapes'"),
    ],
)
def test_what_the_server_cannot_measure_is_refused_and_leaves_no_gallery(
    address: str, tmp_path: Path, change: list[str], message: str
) -> None:
    code, _, err = _run("genecis", "--annotations", _genecis(tmp_path), "--server", address, *change)

    assert code == 1
    assert message in err
    assert not any(name.startswith("eval-") for name in _galleries(address))


def test_a_missing_image_is_named_and_nothing_is_made(address: str, pictures: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", [object_template(100, "in red", 101, [555])])

    code, _, err = _run("genecis", "--annotations", tmp_path, "--server", address, "--images", pictures)

    assert code == 1
    assert "1 of 3 images that the annotations name are not in" in err
    assert "'000000000555.jpg'" in err
    assert not any(name.startswith("eval-") for name in _galleries(address))


def test_a_damaged_image_names_its_file_and_the_gallery_is_deleted(
    address: str, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "000000000555.jpg").write_bytes(b"\xff\xd8\xff no picture")
    write_json(tmp_path / "change_object.json", [object_template(100, "in red", 101, [555])])

    code, _, err = _run(
        "genecis", "--annotations", tmp_path, "--server", address, "--images", pictures, "--images", tmp_path
    )

    assert code == 1
    assert "000000000555.jpg: refused by the server" in err
    assert not any(name.startswith("eval-") for name in _galleries(address))
