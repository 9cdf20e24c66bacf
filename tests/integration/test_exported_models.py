"""From a torch model to a served gallery: exported, checked, served, searched by picture and by text."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from tests.unit.export import small_models  # noqa: E402 - makes torchvision importable for open_clip

from likewise.client import AsyncClient, LikewiseError  # noqa: E402
from likewise.export.combiner import Combiner, CombinerConfig  # noqa: E402
from likewise.export.sources import golden, hugging_face, openclip  # noqa: E402
from likewise.export.sources.publish import Target, publish_composer, publish_source  # noqa: E402
from likewise.server.embedded import running_server  # noqa: E402

_ITEMS = 12


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures() -> list[bytes]:
    return [_png(picture) for picture in golden.pictures(_ITEMS)]


async def _finds_every_item_by_itself(client: AsyncClient, family: str, pictures: Sequence[bytes]) -> None:
    gallery = await client.create_gallery(family, encoder=family, shards=2)
    ids = [f"picture-{i:02d}" for i in range(len(pictures))]
    await gallery.upsert(ids, images=list(pictures))
    for expected, picture in zip(ids, pictures, strict=True):
        hits = await gallery.search(image=picture, k=1, include_reference=True)
        assert (hits.ids, round(float(hits.scores[0]), 4)) == ([expected], 1.0)


def _clip(folder: Path) -> Any:
    return hugging_face.load(str(small_models.clip_folder(folder)))


def _siglip(folder: Path) -> Any:
    return hugging_face.load(str(small_models.siglip_folder(folder)))


def _vit(folder: Path) -> Any:
    return hugging_face.load(str(small_models.vit_folder(folder)))


def _dino(folder: Path) -> Any:
    return hugging_face.load(str(small_models.dino_folder(folder)))


def _open_clip(folder: Path) -> Any:
    return openclip.load(str(small_models.open_clip_folder(folder)))


@pytest.mark.parametrize(
    ("load", "reads_texts"),
    [
        pytest.param(_open_clip, True, id="open_clip"),
        pytest.param(_clip, True, id="clip"),
        pytest.param(_siglip, True, id="siglip"),
        pytest.param(_vit, False, id="vit"),
        pytest.param(_dino, False, id="dino"),
    ],
)
async def test_an_exported_model_is_served_and_a_gallery_finds_every_item_by_itself(
    tmp_path: Path, load: Callable[[Path], Any], *, reads_texts: bool
) -> None:
    publish_source(load(tmp_path / "torch"), Target(tmp_path / "models", family="mine", max_batch=8))

    async with (
        running_server(store=str(tmp_path / "store"), models=(tmp_path / "models",), threads=1) as address,
        AsyncClient(address) as client,
    ):
        await _finds_every_item_by_itself(client, "mine", _pictures())
        gallery = client.gallery("mine")
        if reads_texts:
            assert len((await gallery.search(condition="a red star", k=3)).ids) == 3
            assert len((await gallery.search(text="a red star", k=3)).ids) == 3
        else:
            with pytest.raises(LikewiseError, match="text") as caught:
                await gallery.search(condition="a red star", k=3)
            assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.reason == "NO_ENCODER"


async def test_a_released_combiner_makes_conditional_searches_possible(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = CombinerConfig(dim=small_models.DIM, projection=32, hidden=64)
    family = Target(tmp_path / "models", family="mine", max_batch=8)
    publish_source(_clip(tmp_path / "torch"), family)
    publish_composer(Combiner(config).eval(), family, templates={"change": "now {}"})

    async with (
        running_server(store=str(tmp_path / "store"), models=(tmp_path / "models",), threads=1) as address,
        AsyncClient(address) as client,
    ):
        pictures = _pictures()
        await _finds_every_item_by_itself(client, "mine", pictures)
        gallery = client.gallery("mine")
        plain = await gallery.search(image=pictures[0], k=_ITEMS)
        red = await gallery.search(image=pictures[0], condition="in red", k=_ITEMS)
        blue = await gallery.search(image=pictures[0], condition="in blue", k=_ITEMS)

    assert "composer mine-composer/1" in red.plan.composition
    assert list(red.scores) != list(plain.scores)
    assert list(red.scores) != list(blue.scores)


@pytest.mark.slow
async def test_open_clips_vit_b_32_is_exported_from_a_file_of_weights_and_served(tmp_path: Path) -> None:
    """As OpenAI trained it, with QuickGELU; the small ones have GELU. One export of this size takes a minute."""
    name = "ViT-B-32-quickgelu"
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    model = small_models.create_open_clip(name)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, weights)
    del model

    source = openclip.load(name, pretrained=str(weights))
    image, text = publish_source(source, Target(tmp_path / "models", family="vit", max_batch=8))

    assert source.facts["activation"].startswith("QuickGELU ")
    assert (image.manifest.dim, text.manifest.dim) == (512, 512)
    async with (
        running_server(store=str(tmp_path / "store"), models=(tmp_path / "models",)) as address,
        AsyncClient(address) as client,
    ):
        await _finds_every_item_by_itself(client, "vit", _pictures())
        assert len((await client.gallery("vit").search(condition="a red star", k=3)).ids) == 3


async def test_weights_beside_the_graph_are_served(tmp_path: Path) -> None:
    target = Target(tmp_path / "models", family="mine", max_batch=8, external_data_over=0)
    image, _ = publish_source(_clip(tmp_path / "torch"), target)
    assert set(image.manifest.files) == {"model.onnx", "model.onnx.data"}

    async with (
        running_server(store=str(tmp_path / "store"), models=(tmp_path / "models",), threads=1) as address,
        AsyncClient(address) as client,
    ):
        await _finds_every_item_by_itself(client, "mine", _pictures())
