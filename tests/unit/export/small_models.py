"""Real classes of open_clip and transformers with random weights, small, written as a user would have them on disk."""

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tests.unit.export.torchvision_operators import make_torchvision_importable

make_torchvision_importable()

import open_clip  # noqa: E402 - needs what the line above declares
import sentencepiece  # noqa: E402
import transformers  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer  # noqa: E402

from likewise.export.sources import golden  # noqa: E402

torch.set_num_threads(1)

DIM: Final = 24
LENGTH: Final = 20
SIZE: Final = 32
MERGES: Final = 1500

_TEXT: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "projection_dim": DIM,
}
_VISION: Final[dict[str, Any]] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}


def clip_folder(folder: Path, *, end: int | None = None, tokens: int | None = None, length: int = LENGTH) -> Path:
    """A transformers CLIP with its tokenizer and processor.

    Args:
        folder: Where it is written.
        end: text_config.eos_token_id, if not the tokenizer's.
        tokens: Rows of the text tower, if not as many as the tokenizer has.
        length: Tokens that its tokenizer makes.
    """
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(length)
    rows = len(tokenizer)
    text = _TEXT | {"vocab_size": tokens or rows, "eos_token_id": tokenizer.eos_token_id if end is None else end}
    text["bos_token_id"] = tokenizer.bos_token_id
    vision = _VISION | {"projection_dim": DIM}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    lively(transformers.CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    return folder


def clip_tokenizer(length: int = LENGTH) -> Any:
    """transformers' CLIP tokenizer with the first merges of OpenAI's vocabulary."""
    simple = SimpleTokenizer()
    ranks = simple.bpe_ranks
    merges = sorted(ranks, key=lambda pair: ranks[pair])[:MERGES]
    names = list(simple.encoder)[: 512 + MERGES]
    vocabulary = {name: i for i, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def siglip_folder(folder: Path, *, length: int = LENGTH) -> Path:
    """A transformers SigLIP with a SentencePiece model trained on the golden sentences."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*golden.texts(392), *golden.ODD_TEXTS[2:12], *_words()]),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        character_coverage=0.98,
        pad_id=-1,
        unk_id=2,
        bos_id=-1,
        eos_id=1,
        control_symbols=["<pad>"],
        minloglevel=2,
    )
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=length)
    text = _TEXT | {"vocab_size": 300, "projection_size": 48, "bos_token_id": None, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    lively(transformers.SiglipModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def _words() -> list[str]:
    """English words out of OpenAI's vocabulary: enough to learn 300 pieces from."""
    return [name.removesuffix("</w>") for name in list(SimpleTokenizer().encoder)[1000:9000] if name.isascii()]


def vit_folder(folder: Path) -> Path:
    """A transformers ViT as it comes from classification: with a head, without a pooler."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**_VISION, num_labels=3)  # type: ignore[call-arg]
    lively(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def dino_folder(folder: Path) -> Path:
    """A transformers DINOv2, which resizes to more than it keeps and was trained at another size than it is used at."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**_VISION | {"image_size": 2 * SIZE}, mlp_ratio=2)
    lively(transformers.Dinov2Model(config)).save_pretrained(folder)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 36},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def dino3_folder(folder: Path) -> Path:
    """A transformers DINOv3, whose processor works on floats."""
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(**_VISION, num_register_tokens=2)
    lively(transformers.DINOv3ViTModel(config)).save_pretrained(folder)
    transformers.DINOv3ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def siglip2_folder(folder: Path) -> Path:
    """A SigLIP 2 of a fixed resolution: SigLIP's classes, a byte-pair tokenizer, and texts filled up on the left."""
    torch.manual_seed(0)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *string.ascii_lowercase]
    merges = [("\u2581", "a"), ("r", "e"), ("re", "d"), ("\u2581", "red"), ("s", "t"), ("a", "r"), ("st", "ar")]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    tokenizer = transformers.Siglip2Tokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # pairs are taken too
        model_max_length=LENGTH,
        padding_side="left",
    )
    text = _TEXT | {"vocab_size": len(vocabulary), "projection_size": 48, "bos_token_id": 2, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text | {"pad_token_id": 0}, vision_config=_VISION)
    lively(transformers.SiglipModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def create_open_clip(name: str) -> torch.nn.Module:
    """A model of open_clip's own list, whole, with random weights."""
    made: torch.nn.Module = open_clip.create_model(name)
    return made


def open_clip_config(**changes: Any) -> dict[str, Any]:
    """A small model in open_clip's own form."""
    return {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 48, "patch_size": 8, "head_width": 24},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    } | changes


def open_clip_folder(folder: Path, *, preprocess: dict[str, Any] | None = None, **changes: Any) -> Path:
    """An open_clip model as a folder that `local-dir:` reads."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(**changes)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    model = open_clip.model.CLIP(**config)
    torch.save(lively(model).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def lively(model: torch.nn.Module) -> Any:
    """The model with weights large enough that pictures and texts are told apart, as trained ones do."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "logit" not in name:
                weight.mul_(2.0 if "embed" in name else 1.5)
    return model.eval()


def ids_of(tokenizer: Any, texts: Sequence[str], length: int = LENGTH) -> Any:
    """What a transformers tokenizer makes of texts at a fixed length."""
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np")[
        "input_ids"
    ]
