"""Other forms of tokenizers to a tokenizer.json with the same ids; `towers.check_tokenizer` holds each to that."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from likewise.export.sources.checkpoint import SourceError

_CLIP_WORDS: Final = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_UNKNOWN, _USER_DEFINED, _BYTE = 2, 4, 6
"""SentencePiece's types of pieces (sentencepiece_model.proto)."""

_FIELD_TYPES: Final = ("INT32", "STRING", "BOOL", "BYTES")


def from_clip_bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str]) -> str:
    """OpenAI's byte-pair tokenizer, as open_clip has it in Python, as a tokenizer.json.

    Args:
        vocabulary: Token to id; "</w>" ends a word's last token.
        merges: Pairs, best first.
        special: The tokens that begin and end every text, then any others that a text may contain.

    Returns:
        The file's content. Texts have to be cleaned and lower-cased before it.
    """
    begin, end = special[:2]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A $B {end}",
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    return tokenizer.to_str()


def from_sentencepiece(path: Path, *, end: str | None) -> str:
    """A SentencePiece unigram model as a tokenizer.json.

    Args:
        path: The .model file.
        end: Piece that is added to every text; None for none.

    Raises:
        SourceError: It cannot be read or is no unigram model.
    """
    model = _model_proto()()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a SentencePiece model: {error}") from error
    if model.trainer_spec.model_type != 1:
        raise SourceError(f"{path}: only unigram SentencePiece models are converted; give a tokenizer.json beside it")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)
    tokenizer = Tokenizer(
        models.Unigram(pieces, unk_id=unknown, byte_fallback=any(piece.type == _BYTE for piece in model.pieces))
    )
    steps: list[Any] = []
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    defined = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    if defined:
        tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in defined])
    if end is not None:
        number = next(i for i, (piece, _) in enumerate(pieces) if piece == end)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    return tokenizer.to_str()


def _model_proto() -> Any:
    """A message with the few fields of SentencePiece's ModelProto that matter here.

    The module that comes with sentencepiece refuses every protobuf older than the one it was generated with.
    """
    number, text, flag, raw = (getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{t}") for t in _FIELD_TYPES)
    messages = {
        "Piece": (
            ("piece", 1, text),
            ("score", 2, descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT),
            ("type", 3, number),
        ),
        "Trainer": (("model_type", 3, number),),
        "Normalizer": (("precompiled_charsmap", 2, raw), ("remove_extra_whitespaces", 4, flag)),
        "Model": (("pieces", 1, "Piece"), ("trainer_spec", 2, "Trainer"), ("normalizer_spec", 3, "Normalizer")),
    }
    # proto2: the defaults of what a file leaves out, by sentencepiece_model.proto.
    defaults = {"type": "1", "model_type": "1", "remove_extra_whitespaces": "true"}
    file = descriptor_pb2.FileDescriptorProto(name="likewise_sentencepiece.proto", package="likewise_sentencepiece")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, tag, kind in fields:
            added = message.field.add(name=field, number=tag, label=3 if field == "pieces" else 1)
            if isinstance(kind, str):
                added.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".likewise_sentencepiece.{kind}"
            else:
                added.type = kind
            if field in defaults:
                added.default_value = defaults[field]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("likewise_sentencepiece.Model"))


def from_backend(tokenizer: Any) -> str:
    """The tokenizer.json of a transformers tokenizer that is one inside.

    Raises:
        SourceError: It is not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise SourceError(
            f"{type(tokenizer).__name__} has no tokenizer.json behind it; save one with the model (a fast tokenizer's "
            "save_pretrained() writes it)"
        )
    # Its own padding and truncation are left out: what applies is in the manifest.
    content = json.loads(backend.to_str())
    content["padding"] = content["truncation"] = None
    return json.dumps(content, ensure_ascii=False)
