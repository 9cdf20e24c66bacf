from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from likewise.export.evaluation.crops import canonical_key
from likewise.export.evaluation.features import read_features
from likewise.export.evaluation.problems import EvaluationError


def _write(path: Path, keys: object, vectors: object, key: str = "key") -> Path:
    pq.write_table(pa.table({key: keys, "vector": vectors}), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 3), pa.list_(pa.float16())],
    ids=["list", "large list of doubles", "fixed size", "half"],
)
def test_every_kind_of_list_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    values = np.array([[1, 2, 2], [0, 3, 4]], np.float16)
    path = _write(
        tmp_path / "f.parquet",
        ["a", "b"],
        pa.array(list(values) if kind == pa.list_(pa.float16()) else values.tolist(), kind),
    )

    features = read_features(path)

    assert features.dim == 3
    assert features.norms.tolist() == [3, 5]
    assert features.unit(features.places(["b", "a"], what="keys")).tolist() == [[0, 0.6, 0.8], [1 / 3, 2 / 3, 2 / 3]]


def test_doubles_keep_their_digits(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.parquet", ["a"], pa.array([[0.1, 0.2]], pa.list_(pa.float64())))

    assert read_features(path).raw(np.array([0])).tolist() == [[0.1, 0.2]]


def test_integer_keys_and_crops_in_any_spelling_are_found(tmp_path: Path) -> None:
    numbers = read_features(_write(tmp_path / "n.parquet", [139, 285], [[1.0], [2.0]]))
    crops = read_features(_write(tmp_path / "c.parquet", ["7:1.0,2,3,4"], [[1.0]]), canonical=canonical_key)

    assert numbers.places(["285"], what="keys").tolist() == [1]
    assert crops.places(["7:1,2,3,4"], what="keys").tolist() == [0]


@pytest.mark.parametrize(
    ("keys", "vectors", "message"),
    [
        pytest.param(["a", "a"], [[1.0], [2.0]], r"key 'a' is there twice", id="repeated key"),
        pytest.param(["a", "b"], [[1.0], [1.0, 2.0]], r"'b' \(row 1\) has 2 numbers, that of 'a' 1", id="lengths"),
        pytest.param(["a", "b"], [[1.0], [float("nan")]], r"key 'b' \(row 1\) holds NaN", id="nan"),
        pytest.param(["a", "b"], [[1.0], [float("inf")]], r"key 'b' \(row 1\) holds NaN or infinity", id="infinity"),
        pytest.param(["a", "b"], [[1.0], [0.0]], r"key 'b' \(row 1\) is zero", id="zero"),
        pytest.param(["a", "b"], [[1.0], None], r"'vector' has 1 nulls", id="null vector"),
        pytest.param(["a", "b"], [[1.0], [None]], r"1 null numbers", id="null number"),
        pytest.param(["a", None], [[1.0], [1.0]], r"'key' has 1 nulls", id="null key"),
        pytest.param(["a"], [[1]], r"lists of floats, holds list", id="integers"),
        pytest.param(["a"], [1.0], r"lists of floats, holds double", id="no list"),
        pytest.param([1.5], [[1.0]], r"strings or integers, holds double", id="key type"),
        pytest.param(["a"], [[]], r"lists of floats|has 0 numbers", id="empty vector"),
    ],
)
def test_features_that_cannot_be_measured_are_refused(
    tmp_path: Path, keys: list[object], vectors: list[object], message: str
) -> None:
    path = _write(tmp_path / "f.parquet", keys, vectors)

    with pytest.raises(EvaluationError, match=message) as refusal:
        read_features(path)

    assert str(path) in str(refusal.value)


def test_absent_files_columns_and_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no file .*a\.parquet"):
        read_features(tmp_path / "a.parquet")
    with pytest.raises(EvaluationError, match=r"no column 'text', only \['key', 'vector'\]"):
        read_features(_write(tmp_path / "b.parquet", ["a"], [[1.0]]), key="text")
    with pytest.raises(EvaluationError, match="has no rows"):
        read_features(_write(tmp_path / "c.parquet", pa.array([], pa.string()), pa.array([], pa.list_(pa.float32()))))
    (tmp_path / "d.parquet").write_text("key,vector")
    with pytest.raises(EvaluationError, match="cannot be read as Parquet"):
        read_features(tmp_path / "d.parquet")


def test_unknown_keys_are_counted_and_shown_beside_one_that_is_there(tmp_path: Path) -> None:
    features = read_features(_write(tmp_path / "f.parquet", ["000000000139"], [[1.0]]))

    with pytest.raises(
        EvaluationError, match=r"2 of 2 reference keys are not in it: '139', '285'.*like '000000000139'"
    ):
        features.places(["139", "285", "139"], what="reference keys")
