from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from likewise.export import repository  # noqa: E402
from likewise.export.manifest import PreprocessingSpec, TensorSpec  # noqa: E402
from likewise.export.model_repository import load_repository  # noqa: E402
from likewise.export.parity import LIMITS, Parity, ParityError, check_parity, neighbour_overlap  # noqa: E402
from likewise.export.precision import convert, normalising_nodes  # noqa: E402
from likewise.export.repository import Part, next_version, write_family  # noqa: E402
from likewise.export.runtime import open_session, run_graph  # noqa: E402
from likewise.export.to_onnx import StaticBatchError, check_dynamic_batch, export_graph, graph_files  # noqa: E402

_WIDTH, _DIM = 32, 16


class _Block(nn.Module):
    """What a transformer is made of, with a residual stream as wide as is asked for."""

    def __init__(self, scale: float = 1.0, *, normalised: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.normalised = scale, normalised
        self.first, self.second = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _DIM)
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(x) * self.scale
        attended = torch.softmax(self.norm(wide), -1) + functional.gelu(self.norm(wide))
        y = self.second(attended)
        return functional.normalize(y, dim=1) if self.normalised else y


def _sample(batch: int) -> tuple[Tensor, ...]:
    # Crowds of eleven, so that it is clear which ten are an item's nearest.
    generator = torch.Generator().manual_seed(0)
    crowds = torch.randn((batch // 11 + 1, _WIDTH), generator=generator)
    return (crowds[torch.arange(batch) // 11] + 0.2 * torch.randn((batch, _WIDTH), generator=generator),)


def _graph(module: nn.Module, folder: Path, **options: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    export_graph(module.eval(), _sample(2), path, names=("x",), output="features", **options)
    return path


def _types(path: Path, op: str) -> set[int]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {types[node.output[0]] for node in graph.node if node.op_type == op}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_converted_graph_keeps_its_inputs_outputs_and_neighbours(tmp_path: Path, precision: str) -> None:
    module = _Block().eval()
    path = _graph(module, tmp_path)
    whole = path.stat().st_size

    convert(path, precision, [x.numpy() for x in _sample(4)])

    assert check_parity(module, path, _sample, max_batch=8, precision=precision).gallery == 128
    session = open_session(path)
    assert [node.type for node in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    assert path.stat().st_size < whole


def test_fp16_keeps_norms_and_softmax_in_fp32_and_multiplies_in_fp16(tmp_path: Path) -> None:
    path = _graph(_Block(normalised=True), tmp_path)

    convert(path, "fp16", [x.numpy() for x in _sample(4)])

    kept = {op: _types(path, op) for op in ("LayerNormalization", "Softmax", "ReduceL2")}
    assert kept == {op: {onnx.TensorProto.FLOAT} for op in kept}
    assert onnx.TensorProto.FLOAT16 in _types(path, "Gemm") | _types(path, "MatMul")


def test_the_nodes_that_bring_the_output_to_unit_length_are_found_and_raw_features_have_none(tmp_path: Path) -> None:
    unit = onnx.load(str(_graph(_Block(normalised=True), tmp_path / "unit")))
    raw = onnx.load(str(_graph(_Block(), tmp_path / "raw")))

    names = normalising_nodes(unit.graph)

    assert {"ReduceL2", "Div"} <= {node.op_type for node in unit.graph.node if node.name in names}
    assert {node.op_type for node in unit.graph.node if node.name in names}.isdisjoint({"Gemm", "MatMul"})
    assert normalising_nodes(raw.graph) == set()


def test_a_tensor_near_the_end_of_fp16_keeps_its_nodes_in_fp32(tmp_path: Path) -> None:
    # A processor computes fp16 in fp32 and would never show the overflow that a GPU has (onnxruntime#31626).
    wide, narrow = _graph(_Block(50_000.0), tmp_path / "wide"), _graph(_Block(), tmp_path / "narrow")
    inputs = [x.numpy() for x in _sample(16)]

    facts = [convert(path, "fp16", inputs)["nodes_kept_fp32_for_range"] for path in (wide, narrow)]

    assert facts[0] > 0
    assert facts[1] == 0
    assert onnx.TensorProto.FLOAT in _types(wide, "Mul")


def test_unit_vectors_are_not_rounded_to_fp16_on_the_way_out(tmp_path: Path) -> None:
    path = _graph(_Block(normalised=True), tmp_path)
    (x,) = _sample(32)

    convert(path, "fp16", [x.numpy()])

    queries = run_graph(open_session(path), x.numpy())
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    assert not np.array_equal(queries, queries.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_graph_is_valid_by_the_standard(tmp_path: Path, precision: str) -> None:
    # ONNX Runtime takes more than the standard allows; others that serve the same file do not.
    path = _graph(_Block(normalised=True), tmp_path)

    convert(path, precision, [x.numpy() for x in _sample(4)])

    onnx.checker.check_model(str(path), full_check=True)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'fp8'"):
        convert(tmp_path / "model.onnx", "fp8", [])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_stay_in_the_file_beside_the_graph(tmp_path: Path, precision: str) -> None:
    module = _Block().eval()
    path = _graph(module, tmp_path, external_data_over=0)

    convert(path, precision, [x.numpy() for x in _sample(4)])

    assert [file.name for file in graph_files(path)] == ["model.onnx", "model.onnx.data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    check_parity(module, path, _sample, max_batch=8, precision=precision)


def test_neighbours_are_counted_as_sets_without_the_item_itself() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    others = np.roll(vectors, 1, axis=0)

    scores = vectors @ vectors.T - 10 * np.eye(40)
    right = [set(np.argsort(-row)[:10].tolist()) for row in scores]
    scores = others @ others.T - 10 * np.eye(40)
    found = [set(np.argsort(-row)[:10].tolist()) for row in scores]

    assert neighbour_overlap(vectors, vectors) == 1.0
    expected = np.mean([len(a & b) / 10 for a, b in zip(right, found, strict=True)])
    assert neighbour_overlap(others, vectors) == pytest.approx(expected)
    assert neighbour_overlap(others[:11], vectors[:11]) == 1.0


class _Noisy(nn.Module):
    """The same block with its output moved a little, differently for each input."""

    def __init__(self, module: nn.Module, amount: float) -> None:
        super().__init__()
        self.module, self.amount = module, amount

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + self.amount * torch.sin(1000 * x[:, :_DIM])  # type: ignore[no-any-return]


def test_ranks_that_change_are_refused_though_every_vector_is_close(tmp_path: Path) -> None:
    # Vectors of nearly one direction: a cosine of 0.9999 says nothing about which of them is nearest.
    class Crowded(_Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.02 + 1

    path = _graph(Crowded(), tmp_path)
    other = _Noisy(Crowded(), 0.01).eval()

    with pytest.raises(ParityError, match=r"0\.\d+ of the 10 nearest neighbours in a gallery of 128 are kept"):
        check_parity(other, path, _sample, max_batch=8, precision="fp16")


@pytest.mark.parametrize(("precision", "amount"), [("fp32", 2e-3), ("fp16", 0.3), ("int8", 0.3)])
def test_vectors_beyond_the_limit_of_their_precision_are_refused(tmp_path: Path, precision: str, amount: float) -> None:
    path = _graph(_Block(), tmp_path)

    with pytest.raises(ParityError, match=rf"\({precision}\), batch 1: unit vectors differ by"):
        check_parity(_Noisy(_Block(), amount).eval(), path, _sample, max_batch=8, precision=precision)


def test_a_graph_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    path = _graph(_Block(float("inf")), tmp_path)

    with pytest.raises(ParityError, match="differ by nan"):
        check_parity(_Block().eval(), path, _sample, max_batch=8)


def test_every_batch_of_the_gate_is_run(tmp_path: Path) -> None:
    asked: list[int] = []

    def sample(batch: int) -> tuple[Tensor, ...]:
        asked.append(batch)
        return _sample(batch)

    parity = check_parity(_Block().eval(), _graph(_Block(), tmp_path), sample, max_batch=9)

    assert asked == [1, 2, 3, 7, 9]
    assert parity.batches == (1, 2, 3, 7, 9)
    assert LIMITS["fp32"].difference == 1e-4


def test_a_graph_with_a_static_batch_is_refused_by_name_with_the_fix(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "static",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 4])],
        [tensor("y", onnx.TensorProto.FLOAT, ["batch", 4])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")

    with pytest.raises(StaticBatchError, match=r"model\.onnx: input 'x' has a batch fixed at 1.*batch of 2"):
        check_dynamic_batch(tmp_path / "model.onnx")


def _part(module: nn.Module, *, precision: str = "fp32", name: str = "toy-image") -> Part:
    def sample(batch: int) -> tuple[Tensor, ...]:
        (x,) = _sample(batch)
        return (x[:, :27].reshape(batch, 3, 3, 3),)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, pixels: Tensor) -> Tensor:
            return self.module(functional.pad(pixels.flatten(1), (0, 5)))  # type: ignore[no-any-return]

    return Part(
        name,
        "image_encoder",
        Flat().eval(),
        (TensorSpec("pixels", "float32", (-1, 3, 3, 3)),),
        TensorSpec("features", "float32", (-1, _DIM)),
        sample,
        "",
        preprocessing=PreprocessingSpec(3, "shortest", "center", "bicubic", (0.5,) * 3, (0.5,) * 3),
        precision=precision,
    )


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """An exporter that writes a graph of other weights, as one that is silently wrong does (pytorch#166797)."""
    written: list[Path] = []
    right = repository.export_graph  # type: ignore[attr-defined]

    def wrong(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: object) -> None:
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(0.05)
            right(module, inputs, path, **options)  # type: ignore[arg-type]
            for weight in module.parameters():
                weight.sub_(0.05)
        written.append(path)

    monkeypatch.setattr(repository, "export_graph", wrong)
    return lambda: written


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_sabotaged_graph_is_refused_and_the_repository_stays_as_it_was(
    tmp_path: Path, sabotaged: Callable[[], list[Path]], precision: str
) -> None:
    with pytest.raises(ParityError):
        write_family(tmp_path / "models", "toy", (_part(_Block(), precision=precision),), dim=_DIM, max_batch=8)

    assert len(sabotaged()) == 1
    assert list(tmp_path.iterdir()) == []


def test_precision_and_figures_are_in_the_manifest_and_versions_count_up(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert next_version(models, ["toy-image"]) == 1

    for precision in ("fp32", "fp16"):
        write_family(models, "toy", (_part(_Block(), precision=precision),), dim=_DIM, number=None, max_batch=8)

    first, second = (model.manifest for model in load_repository(models).models)
    assert [(first.version, first.precision), (second.version, second.precision)] == [(1, "fp32"), (2, "fp16")]
    assert first.space != second.space
    assert second.evaluation["parity"]["top_10_overlap"] >= 0.99
    assert second.evaluation["parity"]["gallery"] == 128


def test_weights_beside_the_graph_are_hashed_and_decide_the_space(tmp_path: Path) -> None:
    spaces = {}
    for seed in (0, 1):
        module = _Block()
        with torch.no_grad():
            module.second.bias.add_(seed)
        (model,) = write_family(
            tmp_path / str(seed), "toy", (_part(module),), dim=_DIM, max_batch=8, external_data_over=0
        )
        assert set(model.manifest.files) == {"model.onnx", "model.onnx.data"}
        spaces[seed] = (model.manifest.space, model.manifest.files["model.onnx"])
        assert run_graph(open_session(model.file()), np.zeros((3, 3, 3, 3), np.float32)).shape == (3, _DIM)

    assert spaces[0][0] != spaces[1][0]


def test_a_changed_byte_in_the_weights_beside_the_graph_is_refused(tmp_path: Path) -> None:
    (model,) = write_family(tmp_path / "m", "toy", (_part(_Block()),), dim=_DIM, max_batch=8, external_data_over=0)
    data = model.file("model.onnx.data")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(bytes(content))

    with pytest.raises(ValueError, match=r"model\.onnx\.data has SHA-256.*damaged or replaced"):
        load_repository(tmp_path / "m")


def test_figures_without_a_check_are_none() -> None:
    from likewise.export.parity import figures

    assert figures(None, "fp32") == {}
    assert figures(Parity(1e-6, 1.0, 1.0, 8, (1, 8)), "fp32")["batches"] == [1, 8]
