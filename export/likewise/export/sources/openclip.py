"""open_clip's models: by name with weights of a tag or a file, from the Hugging Face hub, or from a local folder."""

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

from likewise.export.manifest import TokenizerSpec
from likewise.export.preprocess import Preprocessing
from likewise.export.sources.checkpoint import CheckpointError, SourceError, mismatch_in, shown
from likewise.export.sources.libraries import library
from likewise.export.sources.tokenizers_json import from_backend, from_clip_bpe
from likewise.export.sources.towers import TOKENIZER_FILE, ImageTower, Source, TextTower

_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CLEANINGS: Final = {
    "_clean_lower": "open_clip_lower",
    "_clean_whitespace": "open_clip_whitespace",
    "_clean_canonicalize": "open_clip_canonicalize",
}


class _ImageTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels, normalize=False)  # type: ignore[no-any-return,operator]


class _TextTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        # int32 to the end: some providers have no ArgMax over int64, by which the end of a text is found
        # (openai/CLIP#219).
        return self.model.encode_text(ids, normalize=False)  # type: ignore[no-any-return,operator]


def load(
    name: str,
    *,
    pretrained: str | None = None,
    quick_gelu: bool = False,
    max_length: int | None = None,
    template: str = "{}",
    truncate: str = "end",
) -> Source:
    """Load a model with its weights; what it needs of the hub is fetched by open_clip.

    Args:
        name: A model of open_clip ("ViT-B-32"), "hf-hub:ORG/REPO", or a folder with open_clip_config.json.
        pretrained: For a model by name: a tag ("laion2b_s34b_b79k") or a file of weights.
        quick_gelu: The weights of a file were trained with QuickGELU, though the model's name does not say so.
        max_length: Tokens of a text, if not as many as the model reads.
        template: Text frame.
        truncate: See ``tokenizer.Tokenizer``.

    Raises:
        SourceError: The name, the tag or the activation does not fit; the message has the fix.
        CheckpointError: The weights do not fit the model.
    """
    open_clip = library("open_clip")
    if Path(name).is_dir():
        name = f"{_FOLDER}{name}"
    facts: dict[str, str] = {}
    if name.startswith((_HUB, _FOLDER)):
        if pretrained is not None:
            raise SourceError(
                f"{name} comes with its weights; --pretrained {pretrained} would not be used: leave it out"
            )
    else:
        facts = _check_weights(open_clip, name, pretrained, quick_gelu=quick_gelu)
    model = _create(open_clip, name, pretrained, quick_gelu=quick_gelu)
    image = _image_tower(open_clip, model)
    text = _text_tower(open_clip, model, name, max_length=max_length, template=template, truncate=truncate)
    label = name.removeprefix(_HUB).removeprefix(_FOLDER)
    suffix = "" if pretrained is None else f"-{Path(pretrained).stem}"
    return Source(f"{Path(label).name}{suffix}", image, text, ("open_clip_torch", "torchvision"), facts)


def _check_weights(open_clip: Any, name: str, pretrained: str | None, *, quick_gelu: bool) -> dict[str, str]:
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise SourceError(f"open_clip has no model {name!r} and there is no such folder{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        known = f", tags of {name}: {shown(tags)}" if tags else ""
        raise SourceError(f"{name} alone has random weights; name them with --pretrained TAG|FILE{known}")
    mine = bool(config.get("quick_gelu", False)) or quick_gelu
    activation = "QuickGELU" if mine else "GELU"
    trained = open_clip.get_pretrained_cfg(name, pretrained)
    if trained:
        theirs = bool(trained.get("quick_gelu", False))
        if theirs != mine:
            fix = f"{name}-quickgelu" if theirs else name.removesuffix("-quickgelu")
            raise SourceError(
                f"the weights {pretrained!r} were trained with {'QuickGELU' if theirs else 'GELU'}, {name} computes "
                f"{activation}: every vector would be a little wrong and nothing would say so. Export {fix}"
                + ("" if theirs or not quick_gelu else " without --quick-gelu")
            )
        return {"weights": f"tag {pretrained}", "activation": activation}
    if not Path(pretrained).is_file():
        known = f"tags are {shown(tags)}" if tags else "it has no tags"
        raise SourceError(f"{pretrained!r} is neither a file nor a tag of {name}; {known}")
    return {
        "weights": f"file {Path(pretrained).name}",
        "activation": f"{activation} (a file does not say; weights from OpenAI's need QuickGELU)",
    }


def _create(open_clip: Any, name: str, pretrained: str | None, *, quick_gelu: bool) -> nn.Module:
    origin = f"{pretrained} for {name}" if pretrained else name
    settings = _known_preprocessing(open_clip, name) if pretrained and Path(pretrained).is_file() else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = open_clip.create_model(
                name,
                pretrained=pretrained,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=settings,
                # Weights of a base model under a checkpoint that does not fill it would pass for trained ones.
                pretrained_text=False,
                require_pretrained=True,
            )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        problem = mismatch_in(str(error))
        if problem:
            raise CheckpointError(f"{origin}: {problem}") from error
        raise SourceError(f"{origin} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.eval().float()


def _known_preprocessing(open_clip: Any, name: str) -> dict[str, Any] | None:
    """What all published weights of a model agree on; a file does not say what it was trained with.

    open_clip would take OpenAI's mean and a centre crop, which is wrong for SigLIP's models.
    """
    fields = ("mean", "std", "interpolation", "resize_mode")
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    told = [{field: config[field] for field in fields if config.get(field) is not None} for config in configs]
    return told[0] if told and all(one == told[0] for one in told) else None


def _image_tower(open_clip: Any, model: nn.Module) -> ImageTower:
    config: Mapping[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr,assignment]
    transform: Callable[[Image.Image], Tensor] = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )

    def reference(image: Image.Image) -> npt.NDArray[np.float32]:
        return np.asarray(transform(image).numpy(), np.float32)

    return ImageTower(_ImageTower(model).eval(), preprocessing_from(config), reference)


def preprocessing_from(config: Mapping[str, Any]) -> Preprocessing:
    """open_clip's PreprocessCfg as ours.

    Raises:
        SourceError: It asks for what serving does not do.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height != width:
        raise SourceError(f"the model reads pictures of {height} x {width}; only square ones are served")
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise SourceError(f"resize mode {mode!r} is not served; there are shortest and squash")
    values: dict[str, Any] = {
        "size": int(height),
        # open_clip takes "random", which is of training, for bicubic.
        "interpolation": "bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        "mean": tuple(float(x) for x in config["mean"]),
        "std": tuple(float(x) for x in config["std"]),
    }
    if mode == "squash":
        return Preprocessing(resize="squash", crop="none", **values)
    return Preprocessing(resize="shortest", crop="center", rounding="torchvision", **values)


def _text_tower(
    open_clip: Any, model: nn.Module, name: str, *, max_length: int | None, template: str, truncate: str
) -> TextTower:
    tower = getattr(model, "text", model)
    tokenizer = open_clip.get_tokenizer(name)
    length = max_length or tokenizer.context_length
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        content, cleaning, pad_id, pad_side = _simple(tokenizer), _cleaning(tokenizer.clean_fn), 0, "right"
    else:
        if getattr(tokenizer, "tokenizer_mode", "") or getattr(tokenizer, "strip_sep_token", False):
            raise SourceError(f"{name}: its tokenizer changes the ids afterwards, which is not served")
        content, pad_id, pad_side = from_backend(inner), int(inner.pad_token_id), str(inner.padding_side)
        clean = getattr(tokenizer, "clean_fn", None)
        cleaning = "open_clip_canonicalize" if clean is None else _cleaning(clean)

    def reference(texts: Sequence[str]) -> npt.NDArray[Any]:
        return np.asarray(tokenizer(list(texts), context_length=length).numpy())

    return TextTower(
        _TextTower(model).eval(),
        content,
        TokenizerSpec(TOKENIZER_FILE, length, pad_id, template, truncate, cleaning, pad_side),
        vocabulary=_rows(tower),
        positions=_positions(tower, tokenizer.context_length),
        reference=reference,
    )


def _simple(tokenizer: Any) -> str:
    if tokenizer.reduction_fn is not None:
        raise SourceError("a tokenizer that drops tokens at random is for training; it is not served")
    special = [token for token, number in tokenizer.encoder.items() if number in set(tokenizer.all_special_ids)]
    ranks: Mapping[tuple[str, str], int] = tokenizer.bpe_ranks
    return from_clip_bpe(tokenizer.encoder, sorted(ranks, key=lambda pair: ranks[pair]), special)


def _cleaning(function: Callable[[str], str]) -> str:
    try:
        return _CLEANINGS[function.__name__]
    except KeyError:
        raise SourceError(f"the tokenizer's cleaning {function.__name__!r} is not served") from None


def _rows(tower: nn.Module) -> int:
    table = getattr(tower, "token_embedding", None)
    if table is None:
        table = tower.transformer.get_input_embeddings()  # type: ignore[union-attr,operator]
    return int(table.num_embeddings)


def _positions(tower: nn.Module, otherwise: int) -> int:
    positions = getattr(tower, "positional_embedding", None)
    if isinstance(positions, Tensor):
        # CoCa's text tower has a position more, for a token of its own.
        return len(positions) - int(getattr(tower, "cls_emb", None) is not None)
    return int(getattr(tower, "context_length", None) or otherwise)
