from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.server.model_fixtures import (
    DIM,
    colour_embedding,
    composed,
    open_models,
    png,
    text_embedding,
    write_repository,
)

from likewise.export.manifest import TensorSpec
from likewise.export.model_repository import builtin_repository
from likewise.server.batcher import BatchLimits
from likewise.server.compose import compose_query, unit
from likewise.server.errors import FailedPrecondition, InvalidRequest, NotFound, Unimplemented
from likewise.server.images import ImageLimits
from likewise.server.model_service import ModelServiceServicer
from likewise.server.models import ModelsError, OnnxModels, read_repositories
from likewise.server.protocols import Family
from likewise.server.query import ConditionInput, ImageReference
from likewise.server.session import CPU, Runtime
from likewise.v1 import model_service_pb2 as pb
from likewise.v1.search_service_pb2 import CONDITION_MODE_FOCUS

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


@pytest.fixture
async def models(folder: Path) -> AsyncIterator[OnnxModels]:
    made = open_models(folder)
    yield made
    await made.close()


def states(models: OnnxModels) -> dict[str, int]:
    return {model.name: model.state for model in models.models()}


async def test_a_family_encodes_and_composes_as_its_graphs_say(models: OnnxModels) -> None:
    family = models.family("tiny")
    assert family.image is not None
    assert family.text is not None
    assert family.composer is not None

    images = await family.image.encode([png(RED), png(BLUE)])
    texts = await family.text.encode(["red", "small dog"])
    queries = await family.composer.compose(images.vectors, texts.vectors)

    np.testing.assert_allclose(images.vectors, [colour_embedding(RED), colour_embedding(BLUE)], atol=1e-5)
    np.testing.assert_allclose(texts.vectors, [text_embedding("red"), text_embedding("small dog")], atol=1e-5)
    np.testing.assert_allclose(queries[1], composed(images.vectors[1], texts.vectors[1]), atol=1e-5)
    assert family.dim == DIM
    assert {family.image.model.space, family.text.model.space, family.composer.model.space} == {family.space}
    assert family.space.startswith("sha256:")


async def test_a_query_goes_through_real_graphs(models: OnnxModels) -> None:
    query = await compose_query(
        models.family("tiny"),
        DIM,
        reference=ImageReference(png(BLUE)),
        conditions=[ConditionInput("dog", mode=CONDITION_MODE_FOCUS)],
    )

    expected = composed(colour_embedding(BLUE), text_embedding("the same dog"))
    np.testing.assert_allclose(query.vector, expected, atol=1e-5)
    assert query.composition == "composer tiny-composer/1 over image + 1 text condition"
    assert [(model.name, model.kind) for model in query.models] == [
        ("tiny-image", "image_encoder"),
        ("tiny-text", "text_encoder"),
        ("tiny-composer", "composer"),
    ]


async def test_a_text_lies_where_its_picture_lies(models: OnnxModels) -> None:
    query = await compose_query(models.family("tiny"), DIM, reference=None, conditions=[ConditionInput("red")])

    np.testing.assert_allclose(query.vector, unit(colour_embedding(RED)), atol=1e-5)


async def test_numbers_too_large_for_a_composer_are_the_callers_fault(models: OnnxModels) -> None:
    composer = models.family("tiny").composer
    assert composer is not None

    with pytest.raises(InvalidRequest, match="too large"):
        await composer.compose(np.full((1, DIM), 1e30, np.float32), np.full((1, DIM), 1e30, np.float32))


async def test_models_open_when_first_used(models: OnnxModels) -> None:
    assert set(states(models).values()) == {pb.MODEL_STATE_AVAILABLE}
    text = models.family("tiny").text
    assert text is not None

    await text.encode(["red"])

    assert states(models) == {
        "tiny-composer": pb.MODEL_STATE_AVAILABLE,
        "tiny-image": pb.MODEL_STATE_AVAILABLE,
        "tiny-text": pb.MODEL_STATE_READY,
    }


async def test_loading_opens_all_models_and_tells_about_them(models: OnnxModels) -> None:
    await models.open()

    described = models.models()
    assert [model.name for model in described] == ["tiny-composer", "tiny-image", "tiny-text"]
    assert {(model.state, model.provider, model.family, model.dim) for model in described} == {
        (pb.MODEL_STATE_READY, CPU, "tiny", DIM)
    }
    assert [model.kind for model in described] == [
        pb.MODEL_KIND_COMPOSER,
        pb.MODEL_KIND_IMAGE_ENCODER,
        pb.MODEL_KIND_TEXT_ENCODER,
    ]
    assert set(described[2].files) == {"model.onnx", "tokenizer.json"}


async def test_loading_takes_names_of_families(tmp_path: Path) -> None:
    models = open_models(write_repository(tmp_path / "a", family="a"), write_repository(tmp_path / "b", family="b"))

    await models.open(["b"])

    ready = {name for name, state in states(models).items() if state == pb.MODEL_STATE_READY}
    assert ready == {"b-composer", "b-image", "b-text"}
    with pytest.raises(NotFound, match="'c'"):
        await models.open(["a", "c"])
    await models.close()


async def test_a_damaged_file_fails_its_model_alone_and_says_why(folder: Path, models: OnnxModels) -> None:
    path = folder / "tiny-text" / "1" / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")

    with pytest.raises(FailedPrecondition, match=r"tiny-text/1 cannot be served: model\.onnx has SHA-256") as caught:
        await models.open()

    assert caught.value.reason == "MODEL_FAILED"
    assert str(folder) not in str(caught.value)
    assert states(models) == {
        "tiny-composer": pb.MODEL_STATE_READY,
        "tiny-image": pb.MODEL_STATE_READY,
        "tiny-text": pb.MODEL_STATE_FAILED,
    }
    assert "SHA-256" in models.models()[2].reason
    text = models.family("tiny").text
    assert text is not None
    with pytest.raises(FailedPrecondition, match="SHA-256"):
        await text.encode(["red"])

    path.write_bytes(whole)
    with pytest.raises(FailedPrecondition, match="SHA-256"):
        await text.encode(["red"])
    await models.open()

    assert set(states(models).values()) == {pb.MODEL_STATE_READY}
    assert (await text.encode(["red"])).vectors.shape == (1, DIM)


async def test_a_missing_file_fails_its_model(folder: Path, models: OnnxModels) -> None:
    (folder / "tiny-image" / "1" / "model.onnx").unlink()
    image = models.family("tiny").image
    assert image is not None

    with pytest.raises(FailedPrecondition, match=r"tiny-image/1 cannot be served: model\.onnx is missing"):
        await image.encode([png(RED)])


async def test_a_graph_other_than_its_manifest_fails_its_model(tmp_path: Path) -> None:
    wrong = {"inputs": (TensorSpec("image", "float32", (-1, 3, 224, 224)),)}
    models = open_models(write_repository(tmp_path, image_encoder=wrong))

    with pytest.raises(FailedPrecondition, match="axis 2 of input 'image' is 8, in the manifest 224"):
        await models.open()

    await models.close()


async def test_a_provider_that_is_not_there_fails_the_models(folder: Path) -> None:
    models = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(("TensorrtExecutionProvider", CPU)),
        batch=BatchLimits(),
        images=ImageLimits(),
        workers=1,
    )

    with pytest.raises(FailedPrecondition, match="TensorrtExecutionProvider was asked for"):
        await models.open()

    assert set(states(models).values()) == {pb.MODEL_STATE_FAILED}
    await models.close()


async def test_the_highest_version_is_the_one_in_use(folder: Path) -> None:
    write_repository(folder, version=10)
    write_repository(folder, version=9)
    models = open_models(folder)

    await models.open()

    image = models.family("tiny").image
    assert image is not None
    assert image.model.version == 10
    versions = [(model.version, model.state) for model in models.models() if model.name == "tiny-image"]
    assert versions == [
        (1, pb.MODEL_STATE_AVAILABLE),
        (9, pb.MODEL_STATE_AVAILABLE),
        (10, pb.MODEL_STATE_READY),
    ]
    await models.close()


async def test_an_unknown_family_is_answered_with_those_there_are(models: OnnxModels) -> None:
    with pytest.raises(NotFound, match="no models of the name 'clip'; there are: tiny"):
        models.family("clip")


def test_one_name_in_two_repositories_is_refused(tmp_path: Path) -> None:
    first, second = write_repository(tmp_path / "one"), write_repository(tmp_path / "two")

    with pytest.raises(ModelsError, match=rf"model 'tiny-composer' is in two repositories: {first} and {second}"):
        open_models(first, second)


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelsError, match="no model repository at"):
        read_repositories([tmp_path / "nowhere"], builtin=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": {"space": "sha256:other"}}, "is of space"),
        (
            {"composer": {"condition_templates": {"unspecified": "{}"}}},
            r"no condition template for \['change', 'focus'\]",
        ),
        (
            {"composer": {"inputs": (TensorSpec("a", "float32", (-1, 8)), TensorSpec("b", "float32", (-1, 8)))}},
            r"must be reference and condition, got \['a', 'b'\]",
        ),
        ({"image_encoder": {"outputs": ()}}, "must have one output"),
    ],
)
def test_a_family_that_does_not_fit_together_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_repository(tmp_path, **changes)

    with pytest.raises(ModelsError, match=message):
        open_models(folder)


async def test_no_batch_is_larger_than_the_manifest_allows(folder: Path) -> None:
    sizes: list[int] = []
    models = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(),
        batch=BatchLimits(max_batch=512, max_items=512),
        images=ImageLimits(),
        workers=1,
        on_batch=lambda report: sizes.append(report.size),
    )
    text = models.family("tiny").text
    assert text is not None

    await text.encode(["red"] * 40)

    assert sizes[0] == 16
    assert sum(sizes) == 40
    await models.close()


@pytest.mark.skipif(not builtin_repository().is_dir(), reason="the built-in models have not been made yet")
async def test_the_built_in_models_load_and_answer() -> None:
    models = OnnxModels(
        read_repositories([]), runtime=Runtime(threads=2), batch=BatchLimits(), images=ImageLimits(), workers=2
    )
    await models.open()
    family = models.family("shapes")

    query = await compose_query(
        family, family.dim, reference=ImageReference(png(RED, (96, 64))), conditions=[ConditionInput("in blue")]
    )

    assert set(states(models).values()) == {pb.MODEL_STATE_READY}
    assert abs(np.linalg.norm(query.vector) - 1) < 1e-5
    assert len(query.models) == 3
    await models.close()


@pytest.fixture
def service(models: OnnxModels) -> ModelServiceServicer:
    return ModelServiceServicer(models)


async def test_models_are_listed_in_pages(service: ModelServiceServicer, folder: Path) -> None:
    names: list[str] = []
    token = ""
    for _ in range(3):
        page = await service.List(pb.ModelServiceListRequest(page_size=1, page_token=token), None)  # type: ignore[arg-type]
        names += [model.name for model in page.models]
        token = page.next_page_token

    assert names == ["tiny-composer", "tiny-image", "tiny-text"]
    assert token == ""
    whole = await service.List(pb.ModelServiceListRequest(), None)  # type: ignore[arg-type]
    assert [model.name for model in whole.models] == names


@pytest.mark.parametrize("size", [0, 1_001])
async def test_a_page_size_out_of_bounds_is_refused(service: ModelServiceServicer, size: int) -> None:
    with pytest.raises(InvalidRequest, match="page_size"):
        await service.List(pb.ModelServiceListRequest(page_size=size), None)  # type: ignore[arg-type]


async def test_a_model_is_told_by_name_and_version(service: ModelServiceServicer) -> None:
    for request in (
        pb.ModelServiceGetRequest(name="tiny-text"),
        pb.ModelServiceGetRequest(name="tiny-text", version=1),
    ):
        response = await service.Get(request, None)  # type: ignore[arg-type]
        assert (response.model.name, response.model.version) == ("tiny-text", 1)


@dataclass
class ListedModels:
    listed: list[pb.Model]

    def models(self) -> list[pb.Model]:
        return self.listed

    def family(self, name: str) -> Family:
        raise NotFound(name)


async def test_without_a_version_the_one_in_use_is_told() -> None:
    listed = [
        pb.Model(name="m", version=1, state=pb.MODEL_STATE_READY, in_use=True),
        pb.Model(name="m", version=2, state=pb.MODEL_STATE_READY),
    ]

    response = await ModelServiceServicer(ListedModels(listed)).Get(pb.ModelServiceGetRequest(name="m"), None)  # type: ignore[arg-type]

    assert response.model.version == 1


async def test_without_a_version_in_use_the_newest_is_told() -> None:
    listed = [pb.Model(name="m", version=version, state=pb.MODEL_STATE_AVAILABLE) for version in (1, 2)]

    response = await ModelServiceServicer(ListedModels(listed)).Get(pb.ModelServiceGetRequest(name="m"), None)  # type: ignore[arg-type]

    assert response.model.version == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ModelServiceGetRequest(name="clip"), "'clip'.*tiny-text"),
        (pb.ModelServiceGetRequest(name="tiny-text", version=7), r"no version 7, only \[1\]"),
    ],
)
async def test_a_model_that_is_not_there_is_not_found(
    service: ModelServiceServicer, request_: pb.ModelServiceGetRequest, message: str
) -> None:
    with pytest.raises(NotFound, match=message):
        await service.Get(request_, None)  # type: ignore[arg-type]


async def test_models_that_cannot_be_changed_say_so(service: ModelServiceServicer) -> None:
    calls = [
        service.Load(pb.ModelServiceLoadRequest(name="tiny-text"), None),  # type: ignore[arg-type]
        service.Promote(pb.ModelServicePromoteRequest(name="tiny-text", version=1), None),  # type: ignore[arg-type]
        service.Rollback(pb.ModelServiceRollbackRequest(name="tiny-text"), None),  # type: ignore[arg-type]
        service.Unload(pb.ModelServiceUnloadRequest(name="tiny-text", version=1), None),  # type: ignore[arg-type]
    ]

    for call in calls:
        with pytest.raises(Unimplemented, match="cannot be changed while it runs"):
            await call
