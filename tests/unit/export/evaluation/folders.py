"""Annotation folders and feature files in the official forms, small and made up."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from likewise.export.evaluation.task import Task

DIM = 12


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_features(path: Path, features: Mapping[str, np.ndarray], key: str = "key") -> Path:
    vectors = [np.asarray(vector).tolist() for vector in features.values()]
    pq.write_table(pa.table({key: list(features), "vector": pa.array(vectors, pa.list_(pa.float64()))}), path)
    return path


def random_features(keys: Iterable[str], *, dim: int = DIM, seed: int = 0) -> dict[str, np.ndarray]:
    """Raw vectors of different lengths, the same for the same set of keys."""
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=dim) * rng.uniform(0.5, 20) for key in sorted(set(keys))}


def whole(image: int) -> dict[str, int]:
    return {"val_image_id": image}


def cut(image: int, box: Sequence[float]) -> dict[str, Any]:
    return {"image_id": image, "instance_bbox": list(box), "object_name": "cup"}


def object_template(reference: int, condition: str, target: int, gallery: Sequence[int]) -> dict[str, Any]:
    return {
        "reference": whole(reference),
        "condition": condition,
        "target": whole(target),
        "gallery": [whole(image) for image in gallery],
    }


def object_templates(count: int, *, references: int = 218, gallery: int = 14, seed: int = 0) -> list[dict[str, Any]]:
    """Templates like those of GeneCIS's object tasks: few references, galleries without repeats."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        reference, target, *rest = (int(image) for image in rng.choice(3000, size=gallery + 2, replace=False))
        made.append(object_template(10_000 + reference % references, f"thing {rng.integers(97)}", target, rest))
    return made


def cirr_folder(folder: Path, *, split: str = "val", images: int = 60, queries: int = 30, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    names = [f"dev-{number}-0-img{number % 2}" for number in range(images)]
    entries = []
    for query in range(queries):
        members = [names[number] for number in rng.choice(images, size=6, replace=False)]
        entry = {
            "pairid": 12_000 + query,
            "reference": members[2],
            "caption": f"show  {query} bottles",
            "img_set": {"id": query, "members": members, "reference_rank": 2},
        }
        if split == "val":
            entry |= {"target_hard": members[4], "target_soft": {members[4]: 1.0}}
        entries.append(entry)
    write_json(folder / "captions" / f"cap.rc2.{split}.json", entries)
    write_json(folder / "image_splits" / f"split.rc2.{split}.json", {name: f"./dev/{name}.png" for name in names})
    return folder


def fashioniq_folder(folder: Path, *, images: int = 70, queries: int = 25, seed: int = 0, split: str = "val") -> Path:
    rng = np.random.default_rng(seed)
    for category in ("dress", "shirt", "toptee"):
        names = [f"B00{category[:2].upper()}{number:05d}" for number in range(images)]
        entries = []
        for query in range(queries):
            candidate, target = (names[number] for number in rng.choice(images, size=2, replace=False))
            entry = {"candidate": candidate, "captions": [f"is {category} {query}.", "has more, "]}
            entries.append(entry | ({"target": target} if split == "val" else {}))
        write_json(folder / "captions" / f"cap.{category}.{split}.json", entries)
        write_json(folder / "image_splits" / f"split.{category}.{split}.json", names)
    return folder


def circo_folder(folder: Path, *, images: int = 200, queries: int = 20, seed: int = 0, split: str = "val") -> Path:
    rng = np.random.default_rng(seed)
    ids = [int(image) for image in rng.choice(581_000, size=images, replace=False)]
    entries = []
    for query in range(queries):
        reference, *right = (ids[number] for number in rng.choice(images, size=1 + rng.integers(1, 9), replace=False))
        entry: dict[str, Any] = {
            "reference_img_id": reference,
            "relative_caption": f"has {query} dogs",
            "shared_concept": "a dog",
            "id": query,
        }
        if split == "val":
            aspects = ["addition"] if query % 2 else ["negation", "viewpoint"]
            entry |= {"target_img_id": right[0], "gt_img_ids": right, "semantic_aspects": aspects}
        entries.append(entry)
    write_json(folder / "annotations" / f"{split}.json", entries)
    info = {"images": [{"id": image, "file_name": f"{image:012d}.jpg"} for image in ids]}
    write_json(folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json", info)
    return folder


def right_of(task: Task) -> tuple[tuple[str, ...], ...]:
    """Targets of a task with labels."""
    assert task.targets is not None
    return task.targets


def pool_of(task: Task) -> tuple[str, ...]:
    """Candidates of a task with a pool."""
    assert task.pool is not None
    return task.pool


def lists_of(task: Task) -> tuple[tuple[str, ...], ...]:
    """Candidates of a task without one."""
    assert task.galleries is not None
    return task.galleries
