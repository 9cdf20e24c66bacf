from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.unit.export import own_models  # noqa: E402

from likewise.export.combiner import Combiner, CombinerConfig  # noqa: E402
from likewise.export.manifest import ManifestError  # noqa: E402
from likewise.export.model_repository import Model, load_repository  # noqa: E402
from likewise.export.runtime import OnnxFamily  # noqa: E402
from likewise.export.sources.checkpoint import CheckpointError, SourceError, read_state_dict  # noqa: E402
from likewise.export.sources.composer import combiner  # noqa: E402
from likewise.export.sources.module import make_module  # noqa: E402
from likewise.export.sources.publish import Target, publish_composer, publish_module  # noqa: E402
from likewise.export.sources.signature import parse_signature  # noqa: E402
from likewise.export.to_onnx import StaticBatchError  # noqa: E402
from likewise.export.tokenizer import write_word_tokenizer  # noqa: E402

_HERE = "tests.unit.export.own_models"
_IMAGE = f"pixels: float32[b, 3, {own_models.SIZE}, {own_models.SIZE}] -> features: float32[b, {own_models.DIM}]"
_TEXT = f"ids: int32[b, {own_models.LENGTH}] -> features: float32[b, {own_models.DIM}]"
_PREPROCESS: Mapping[str, Any] = {"size": own_models.SIZE, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both encoders of the family "mine"."""
    root = tmp_path_factory.mktemp("own")
    target = Target(root / "models", family="mine", max_batch=8)
    publish_module(make_module(f"{_HERE}:Pixels"), parse_signature(_IMAGE), target, preprocess=_PREPROCESS)
    write_word_tokenizer(root / "words.json", ["a dog two cats on the beach"])
    publish_module(make_module(f"{_HERE}:Words"), parse_signature(_TEXT), target, tokenizer=root / "words.json")
    return root / "models"


@pytest.mark.parametrize(
    ("text", "kind", "shapes"),
    [
        pytest.param(_IMAGE, "image_encoder", [(-1, 3, 16, 16)], id="image"),
        pytest.param("ids:int32[b,77]->f:float32[b,5]", "text_encoder", [(-1, 77)], id="text, no spaces"),
        pytest.param(
            "condition: float32[b, 5], reference: float32[b, 5] -> query: float32[b, 5]",
            "composer",
            [(-1, 5), (-1, 5)],
            id="composer, the other order",
        ),
    ],
)
def test_a_signature_says_what_a_module_is(text: str, kind: str, shapes: list[tuple[int, ...]]) -> None:
    signature = parse_signature(text)

    assert signature.kind == kind
    assert [spec.shape for spec in signature.inputs] == shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("pixels", "cannot be read from 'pixels'", id="a name"),
        pytest.param("x: float32[b, 3, 8, 8]", "one output, after an arrow", id="no output"),
        pytest.param(
            "x: float32[1, 3, 8, 8] -> y: float32[b, 4]", "cannot be read from 'x: float32", id="static batch"
        ),
        pytest.param("x: float64[b, 4] -> y: float32[b, 4]", "cannot be read", id="number format"),
        pytest.param("x: float32[b, 3, 8, 9] -> y: float32[b, 4]", r"\[b, 3, 8, 9\]", id="not square"),
        pytest.param("x: float32[b, 4] -> y: float32[b, 4]", "no kind of model", id="one vector"),
        pytest.param("x: int32[b, 4] -> y: int32[b, 4]", "must be float32", id="output format"),
        pytest.param(
            "reference: float32[b, 4], condition: float32[b, 5] -> q: float32[b, 4]",
            "vectors of one space",
            id="spaces",
        ),
    ],
)
def test_a_signature_that_means_nothing_is_refused_with_examples(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_signature(text)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        pytest.param("own_models", "package.module:function", id="no colon"),
        pytest.param("nowhere.at_all:make", "nowhere.at_all cannot be imported", id="no module"),
        pytest.param(f"{_HERE}:Nothing", "has no Nothing", id="no name"),
        pytest.param(f"{_HERE}:sized", r"needs arguments \(size\)", id="arguments"),
        pytest.param(f"{_HERE}:no_module", "gives a str, not a torch.nn.Module", id="no torch module"),
        pytest.param(f"{_HERE}:DIM", "is a int, neither", id="a number"),
    ],
)
def test_a_factory_that_makes_no_module_is_refused(factory: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        make_module(factory)


def test_a_module_that_works_for_one_batch_only_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    target = Target(tmp_path / "models", family="fixed")

    with pytest.raises(StaticBatchError, match=r"FixedBatch works for a batch of 2 only.*Use -1"):
        publish_module(make_module(f"{_HERE}:FixedBatch"), parse_signature(_IMAGE), target, preprocess=_PREPROCESS)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("signature", "arguments", "message"),
    [
        pytest.param(_IMAGE, {}, "needs its preprocessing", id="no preprocessing"),
        pytest.param(_IMAGE, {"preprocess": {"size": 32}}, "pictures of 32, the signature says 16", id="size"),
        pytest.param(_IMAGE, {"preprocess": {"side": 16}}, "cannot be", id="field"),
        pytest.param(
            _IMAGE.replace("[b, 12]", "[b, 13]"), {"preprocess": _PREPROCESS}, "gives 12 numbers.*13", id="dim"
        ),
        pytest.param(
            _IMAGE.replace("16, 16", "2, 2"), {"preprocess": {**_PREPROCESS, "size": 2}}, "Pixels fails on", id="input"
        ),
    ],
)
def test_an_image_encoder_that_does_not_fit_its_signature_is_refused(
    tmp_path: Path, signature: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        publish_module(
            make_module(f"{_HERE}:Pixels"), parse_signature(signature), Target(tmp_path / "m", family="x"), **arguments
        )


def test_a_text_encoder_joins_the_space_of_its_familys_image_encoder(family: Path) -> None:
    members = load_repository(family).family("mine")

    assert members.text_encoder is not None
    assert members.text_encoder.manifest.space == members.image_encoder.manifest.space


def test_a_text_encoder_with_another_vocabulary_than_its_tokenizer_is_refused(family: Path, tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "words.json", ["one two three four five six seven eight nine ten eleven"])

    with pytest.raises(SourceError, match="ids up to 12, the text tower vectors for 9"):
        publish_module(
            make_module(f"{_HERE}:Words"),
            parse_signature(_TEXT),
            Target(family, family="mine"),
            tokenizer=tmp_path / "words.json",
        )


def _released(combiner: Combiner) -> dict[str, Any]:
    """A state dict as GeneCIS released them: its own names, trained under DistributedDataParallel."""
    names = {
        "text.0.": "text_projection_layer.",
        "image.0.": "image_projection_layer.",
        "combine.0.": "combiner_layer.",
    }
    names |= {"output.": "output_layer.", "gate.": "dynamic_scalar."}
    found = {}
    for name, value in combiner.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        found[f"module.{names[ours]}{name.removeprefix(ours)}"] = value
    return found


@pytest.fixture
def trained() -> Combiner:
    torch.manual_seed(3)
    return Combiner(CombinerConfig(dim=own_models.DIM, projection=20, hidden=40)).eval()


def test_the_combiner_is_read_from_released_weights_by_their_own_names(trained: Combiner, tmp_path: Path) -> None:
    torch.save(_released(trained), tmp_path / "combiner_head.pt")
    reference, condition = torch.randn(2, 5, own_models.DIM)

    read = combiner(tmp_path / "combiner_head.pt")

    assert not read.training
    assert torch.equal(read(reference, condition), trained(reference, condition))


def test_a_composer_is_published_into_its_family_and_composes_as_the_module_does(
    trained: Combiner, family: Path, tmp_path: Path
) -> None:
    torch.save({"epoch": 3, "Combiner": _released(trained)}, tmp_path / "combiner.pt")

    (model,) = publish_composer(
        combiner(tmp_path / "combiner.pt"), Target(family, family="mine", max_batch=8), templates={"focus": "same {}"}
    )

    members = load_repository(family).family("mine")
    reference, condition = np.random.default_rng(0).standard_normal((2, 4, own_models.DIM)).astype(np.float32)
    expected = trained(torch.from_numpy(reference), torch.from_numpy(condition)).detach().numpy()
    np.testing.assert_allclose(OnnxFamily(members).compose(reference, condition), expected, atol=1e-5)
    assert model.manifest.condition_templates == {"unspecified": "{}", "focus": "same {}", "change": "{}"}
    assert model.manifest.space == members.image_encoder.manifest.space


def test_a_composer_of_ones_own_takes_its_weights_from_a_state_dict(family: Path, tmp_path: Path) -> None:
    torch.save({"module.weight": torch.tensor(2.0)}, tmp_path / "sum.pt")
    module = make_module(f"{_HERE}:Sum", weights=tmp_path / "sum.pt")

    publish_composer(module, Target(family, family="mine", max_batch=8))

    reference, condition = np.eye(own_models.DIM, dtype=np.float32)[:2]
    query = OnnxFamily(load_repository(family).family("mine")).compose(reference[None], condition[None])
    np.testing.assert_allclose(query[0, :2], np.array([1, 2]) / np.sqrt(5), atol=1e-6)


def test_a_composer_of_another_dimension_is_refused(family: Path) -> None:
    other = Combiner(CombinerConfig(dim=own_models.DIM + 1, projection=20, hidden=40)).eval()

    with pytest.raises(SourceError, match="does not read vectors of 12 numbers"):
        publish_composer(other, Target(family, family="mine"))


def test_a_composer_whose_queries_are_no_unit_vectors_is_refused_with_the_fix(family: Path) -> None:
    with pytest.raises(SourceError, match=r"must be unit vectors: end its forward.*normalize"):
        publish_composer(make_module(f"{_HERE}:Unnormalised"), Target(family, family="mine"))


def test_a_composer_without_its_family_is_refused(family: Path, trained: Combiner) -> None:
    with pytest.raises(ManifestError, match="only families \\['mine'\\]"):
        publish_composer(trained, Target(family, family="other"))
    with pytest.raises(SourceError, match="--family NAME; there are: mine"):
        publish_composer(trained, Target(family))


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        pytest.param({"keep": "{}"}, "one of unspecified, focus, change, got 'keep'", id="mode"),
        pytest.param({"focus": "same"}, "must hold {} once", id="frame"),
    ],
)
def test_condition_frames_that_cannot_be_are_refused(
    family: Path, trained: Combiner, templates: dict[str, str], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        publish_composer(trained, Target(family, family="mine"), templates=templates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"module.combiner_layer.bias": None}, "no Combiner's state dict", id="size missing"),
        pytest.param({"module.output_layer.bias": None}, r"1 of 12 weights are missing \(output.bias\)", id="missing"),
        pytest.param({"module.extra": torch.zeros(1)}, r"1 are unexpected \(extra\)", id="unexpected"),
        pytest.param(
            {"module.output_layer.bias": torch.zeros(3)}, r"output.bias: \[3\], expected \[12\]", id="another shape"
        ),
    ],
)
def test_a_combiner_with_missing_or_unexpected_weights_is_refused(
    trained: Combiner, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = {name: value for name, value in (_released(trained) | change).items() if value is not None}
    torch.save(state, tmp_path / "combiner.pt")

    with pytest.raises(CheckpointError, match=message):
        combiner(tmp_path / "combiner.pt")


def test_files_that_hold_no_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, tmp_path / "two.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 4)
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")

    for name, message in (
        ("absent.pt", "no such file"),
        ("text.pt", "cannot be read as weights alone"),
        ("list.pt", "holds a list"),
        ("two.pt", r"several state dicts \(a, b\)"),
        ("broken.safetensors", "cannot be read as safetensors"),
        ("jit.pt", r"TorchScript archive.*torch\.jit\.load"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            read_state_dict(tmp_path / name)
        assert name in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"weights": Path("/")}, tmp_path / "code.pt")

    with pytest.raises(CheckpointError, match="cannot be read as weights alone"):
        read_state_dict(tmp_path / "code.pt")


def test_a_version_that_is_there_is_kept_unless_overwriting_is_asked_for(family: Path, trained: Combiner) -> None:
    (first,) = publish_composer(trained, Target(family, family="mine", max_batch=8))
    target = Target(family, family="mine", max_batch=8, version=first.manifest.version)

    with pytest.raises(SourceError, match=f"mine-composer/{first.manifest.version} is there already"):
        publish_composer(trained, target)

    (again,) = publish_composer(trained, replace(target, overwrite=True))
    assert again.manifest.version == first.manifest.version


def _everything(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_a_new_image_encoder_that_would_leave_the_rest_of_its_family_behind_is_refused(family: Path) -> None:
    # Other vectors: the text encoder of the family would search a space that is not there any more.
    before = _everything(family)
    module = make_module(f"{_HERE}:Pixels")
    with torch.no_grad():
        module.head.bias += 1  # type: ignore[operator,union-attr]

    with pytest.raises(ManifestError, match="nothing was written: export all models of the family together"):
        publish_module(
            module, parse_signature(_IMAGE), Target(family, family="mine", max_batch=8), preprocess=_PREPROCESS
        )

    assert _everything(family) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"precision": "fp8"}, "got 'fp8'", id="precision"),
        pytest.param({"max_batch": 0}, "got 0", id="batch"),
        pytest.param({"version": 0}, "got 0", id="version"),
        pytest.param({"compatible_with": {"sha256:12": 4}}, "64 hex digits", id="digest"),
    ],
)
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Target(tmp_path, **fields)


def test_spaces_that_stay_comparable_are_in_every_manifest(family: Path, tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    target = Target(tmp_path / "m", family="new", max_batch=8, compatible_with={digest: 6})

    models: tuple[Model, ...] = publish_module(
        make_module(f"{_HERE}:Pixels"), parse_signature(_IMAGE), target, preprocess=_PREPROCESS
    )

    assert [model.manifest.compatible_with for model in models] == [{digest: 6}]
