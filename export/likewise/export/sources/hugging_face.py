"""transformers' models: CLIP and SigLIP (SigLIP 2 too) with both towers, ViT, DINOv2, DINOv3 and others with one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from likewise.export.manifest import TokenizerSpec
from likewise.export.preprocess import Preprocessing
from likewise.export.sources.checkpoint import CheckpointError, SourceError, mismatch, mismatch_in
from likewise.export.sources.libraries import library
from likewise.export.sources.tokenizers_json import from_backend, from_sentencepiece
from likewise.export.sources.towers import TOKENIZER_FILE, ImageTower, Source, TextTower

DUAL: Final = ("clip", "siglip")
"""Model types whose two towers read pixels and padded ids alone; others need a mask or pictures cut up beforehand."""

_IGNORED: Final = ("position_ids",)
_HEADS: Final = (
    "classifier.",
    "head.",
    "pooler.",
    "lm_head.",
    "decoder.",
    "cls_classifier.",
    "distillation_classifier.",
)
"""Of checkpoints that are more than an encoder; the encoder's features come before them."""


class _ImageFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        # After the projection: the pooled output before it lies in another space, often of the same length.
        return _pooled(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]


class _TextFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        # No mask: CLIP's is causal and it pools at the end of the text, SigLIP was trained to read its padding.
        return _pooled(self.model.get_text_features(input_ids=ids))  # type: ignore[operator]


class _PooledFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.model(pixel_values=pixels)
        projected = getattr(output, "image_embeds", None)
        if projected is not None:
            return projected  # type: ignore[no-any-return]
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]
        return pooled.flatten(1)  # type: ignore[no-any-return]


def load(
    name: str,
    *,
    max_length: int | None = None,
    template: str = "{}",
    truncate: str = "end",
) -> Source:
    """Load a model by its name on the Hugging Face hub, or from a folder that save_pretrained() wrote.

    Args:
        name: "openai/clip-vit-base-patch32", or the folder.
        max_length: Tokens of a text, if not as many as the model reads.
        template: Text frame.
        truncate: See ``tokenizer.Tokenizer``.

    Raises:
        SourceError: It is of a kind that is not served, or its parts do not fit each other; the message has the fix.
        CheckpointError: The weights do not fit the model.
    """
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        raise SourceError(f"{name}: there is no such folder")
    transformers = library("transformers")
    # What it has to say of missing weights is an error here, and said once.
    transformers.utils.logging.set_verbosity_error()
    config = _fetched(lambda: transformers.AutoConfig.from_pretrained(name), name, "configuration")
    kind = str(config.model_type)
    label = Path(name).name
    libraries = ("transformers",)
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        if kind not in DUAL:
            hint = (
                "its pictures keep their aspect and come in patches; export a SigLIP 2 model of a fixed resolution "
                "(google/siglip2-base-patch16-224)"
                if kind == "siglip2"
                else "write its towers as modules and use `likewise export module`"
            )
            raise SourceError(f"{name} is of the type {kind}, of which text and image are not exported: {hint}")
        model = _model(transformers, name, vision_only=False)
        image = ImageTower(_ImageFeatures(model).eval(), *_transform(transformers, name))
        text = _text_tower(
            transformers, model, config.text_config, name, max_length=max_length, template=template, truncate=truncate
        )
        return Source(label, image, text, libraries, {"activation": str(config.vision_config.hidden_act)})
    model = _model(transformers, name, vision_only=True)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise SourceError(f"{name} is of the type {kind}, which reads no pictures")
    notes = "Raw image features; images only: there is no text encoder in this space."
    if kind == "clip_vision_model" and not hasattr(model, "visual_projection"):
        notes += " Before CLIP's projection: not comparable with the text features of the same CLIP."
    preprocessing, reference = _transform(transformers, name)
    tower = ImageTower(_PooledFeatures(model).eval(), preprocessing, reference, notes)
    return Source(label, tower, None, libraries, {"type": kind})


def _fetched(get: Callable[[], Any], name: str, what: str) -> Any:
    try:
        return get()
    except (OSError, ValueError, ImportError, KeyError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise SourceError(f"{name}: its {what} cannot be loaded: {' '.join(lines[:2])}") from error


def _model(transformers: Any, name: str, *, vision_only: bool) -> nn.Module:
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        # So that they come in the loading information with the others, instead of an error that names none of them.
        "ignore_mismatched_sizes": True,
    }
    try:
        model, info = _load(transformers, name, settings, vision_only=vision_only)
    except RuntimeError as error:
        problem = mismatch_in(str(error)) or str(error).splitlines()[0]
        raise CheckpointError(f"{name}: {problem}") from error
    missing = [key for key in info["missing_keys"] if not key.endswith(_IGNORED)]
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith(_IGNORED)]
    if vision_only:
        unexpected = [key for key in unexpected if not key.startswith(_HEADS)]
    shapes = [
        f"{key}: {list(got)}, expected {list(want)}"
        for key, got, want in (tuple(one) for one in info["mismatched_keys"])
    ]
    problem = mismatch(sorted(missing), sorted(unexpected), sorted(shapes), len(model.state_dict()))
    if problem:
        raise CheckpointError(f"{name} does not fit {type(model).__name__}: {problem}")
    return model.eval()  # type: ignore[no-any-return]


def _load(transformers: Any, name: str, settings: dict[str, Any], *, vision_only: bool) -> tuple[Any, Any]:
    if vision_only:
        config = transformers.AutoConfig.from_pretrained(name)
        wanted = next(iter(config.architectures or ()), "")
        if wanted.endswith("VisionModelWithProjection"):
            return _fetched(lambda: getattr(transformers, wanted).from_pretrained(name, **settings), name, "model")  # type: ignore[no-any-return]
        try:
            # ViT's pooler is trained in few checkpoints and random in the others; the class token is good in all.
            return transformers.AutoModel.from_pretrained(name, add_pooling_layer=False, **settings)  # type: ignore[no-any-return]
        except TypeError:
            pass
    return _fetched(lambda: transformers.AutoModel.from_pretrained(name, **settings), name, "model")  # type: ignore[no-any-return]


def _pooled(output: Any) -> Tensor:
    # transformers 4 gave the tensor itself.
    return output if isinstance(output, Tensor) else output.pooler_output


def _transform(
    transformers: Any, name: str
) -> tuple[Preprocessing, Callable[[Image.Image], npt.NDArray[np.float32]] | None]:
    processor = _fetched(lambda: transformers.AutoImageProcessor.from_pretrained(name), name, "image processor")

    def reference(image: Image.Image) -> npt.NDArray[np.float32]:
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)

    return preprocessing_from(processor, name), reference


def preprocessing_from(processor: Any, name: str) -> Preprocessing:
    """The settings of a transformers image processor as ours.

    Raises:
        SourceError: It asks for what serving does not do.
    """
    size, crop = processor.size or {}, getattr(processor, "crop_size", None) or {}
    shortest, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    cropped = bool(getattr(processor, "do_center_crop", False))
    kept = (crop.get("height"), crop.get("width")) if cropped else (height, width)
    problem = ""
    if not processor.do_resize or not processor.do_rescale:
        problem = "it does not resize, or does not bring pixels to [0, 1]"
    elif abs(float(processor.rescale_factor) * 255 - 1) > 1e-3:
        problem = f"its rescale_factor is {processor.rescale_factor}, not 1/255"
    elif shortest is None and (height is None or height != width):
        problem = f"its size is {dict(size)}: neither a shortest edge nor a square"
    elif kept[0] is None or kept[0] != kept[1]:
        problem = f"its pictures are {kept[0]} x {kept[1]}: not square"
    interpolation = {2: "bilinear", 3: "bicubic"}.get(int(processor.resample))
    if interpolation is None:
        problem = problem or f"its filter is number {int(processor.resample)} of PIL, neither bilinear nor bicubic"
    if problem:
        raise SourceError(f"{name}: its image processor ({type(processor).__name__}) is not served: {problem}")
    target, side = int(shortest or height or 0), int(kept[0] or 0)
    normalised = bool(processor.do_normalize)
    try:
        return Preprocessing(
            size=side,
            resize="shortest" if shortest else "squash",
            crop="center" if cropped else "none",
            interpolation=interpolation,  # type: ignore[arg-type]
            mean=_three(processor.image_mean) if normalised else (0.0, 0.0, 0.0),
            std=_three(processor.image_std) if normalised else (1.0, 1.0, 1.0),
            rounding="transformers" if shortest else "nearest",
            resize_to=None if target == side else target,
        )
    except ValueError as error:
        raise SourceError(f"{name}: its image processor is not served: {error}") from error


def _three(values: Any) -> tuple[float, float, float]:
    numbers = [float(x) for x in values] if isinstance(values, list | tuple) else [float(values)] * 3
    return numbers[0], numbers[1], numbers[2]


def _text_tower(
    transformers: Any, model: nn.Module, config: Any, name: str, *, max_length: int | None, template: str, truncate: str
) -> TextTower:
    tokenizer = _fetched(lambda: transformers.AutoTokenizer.from_pretrained(name), name, "tokenizer")
    positions = int(config.max_position_embeddings)
    own = int(tokenizer.model_max_length)
    # Where a tokenizer has no length of its own it has an astronomic one.
    length = max_length or (own if own < 1_000_000 else positions)
    cleaning = "none"
    if hasattr(tokenizer, "sp_model"):
        if not hasattr(tokenizer, "canonicalize_text"):
            raise SourceError(f"{name}: {type(tokenizer).__name__} is not served; save a tokenizer.json with the model")
        content = from_sentencepiece(Path(tokenizer.vocab_file), end=tokenizer.eos_token)
        cleaning = "siglip"
    else:
        content = from_backend(tokenizer)
    if tokenizer.pad_token_id is None:
        raise SourceError(f"{name}: its tokenizer has no padding token; set pad_token and save it")
    _check_pooling(model, config, tokenizer, name)

    def reference(texts: Sequence[str]) -> npt.NDArray[Any]:
        encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)
        return np.asarray(encoded["input_ids"])

    return TextTower(
        _TextFeatures(model).eval(),
        content,
        TokenizerSpec(
            TOKENIZER_FILE,
            length,
            int(tokenizer.pad_token_id),
            template,
            truncate,
            cleaning,
            str(tokenizer.padding_side),
        ),
        vocabulary=int(model.text_model.get_input_embeddings().num_embeddings),  # type: ignore[union-attr,operator]
        positions=positions,
        reference=reference,
    )


def _check_pooling(model: nn.Module, config: Any, tokenizer: Any, name: str) -> None:
    """CLIP pools at the end-of-text token: with eos_token_id 2 (of old configurations) at the highest id there is."""
    end = getattr(getattr(model, "text_model", None), "eos_token_id", None)
    if str(config.model_type) != "clip_text_model" or end is None:
        return
    written = tokenizer.eos_token_id
    if end == 2:
        last = max(tokenizer.get_vocab().values())
        if written != last:
            raise SourceError(
                f"{name}: eos_token_id is 2, so the text is pooled at its highest id, but the end-of-text token is "
                f"{written} and ids go up to {last}: set text_config.eos_token_id to {written}"
            )
    elif end != written:
        raise SourceError(
            f"{name}: the text is pooled at token {end} (text_config.eos_token_id), its tokenizer ends texts with "
            f"{written}: every text would get the vector of its first token"
        )
