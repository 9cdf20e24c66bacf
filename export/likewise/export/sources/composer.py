"""Composers: the GeneCIS Combiner from its state dict, or any module that composes a reference with a condition."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from likewise.export.combiner import Combiner, config_of, renamed
from likewise.export.manifest import ManifestError
from likewise.export.model_repository import Family, load_repository
from likewise.export.preprocess import preprocessing_of, to_tensor
from likewise.export.repository import Part
from likewise.export.runtime import open_session, run_graph
from likewise.export.sources import golden
from likewise.export.sources.checkpoint import CheckpointError, SourceError, load_strictly, read_state_dict
from likewise.export.sources.signature import composer_signature
from likewise.export.sources.towers import Pictures, dimension
from likewise.export.tokenizer import tokenizer_of

MODES: Final = ("unspecified", "focus", "change")
RAW: Final[Mapping[str, str]] = dict.fromkeys(MODES, "{}")
"""The condition as it was typed, which is GeneCIS's own protocol."""

_CHUNK: Final = 16


def combiner(path: Path) -> Combiner:
    """The Combiner of a state dict, by GeneCIS's and CLIP4Cir's names or by ours, sized by its weights.

    Raises:
        CheckpointError: The file is no Combiner's.
    """
    state = renamed(read_state_dict(path))
    try:
        config = config_of(state)
    except KeyError as error:
        known = ", ".join(sorted(state)[:4])
        raise CheckpointError(
            f"{path} is no Combiner's state dict: it has no {error}, but {known}, ...; for a composer of another form "
            "name what makes it (--factory package.module:function)"
        ) from error
    module = Combiner(config)
    load_strictly(module, state, str(path))
    return module.eval()


def composer_part(
    module: nn.Module,
    repository: Path,
    family: str,
    *,
    templates: Mapping[str, str] | None = None,
    pictures: Pictures = golden.pictures,
    precision: str = "fp32",
) -> Part:
    """A composer as a further model of a family, to be compared on features of that family's own encoders.

    Args:
        module: (b, d) raw reference and (b, d) raw condition features to (b, d) unit queries, in eval mode.
        repository: Where the family is.
        family: Its name; it has to have both encoders.
        templates: Text frame of each condition mode; what is not given is the condition as it was typed.
        pictures: References to compare on.
        precision: Of the published graph.

    Raises:
        ManifestError: There is no such family, or it is damaged.
        SourceError: The composer does not fit the family.
    """
    frames = _frames(templates or {})
    members = load_repository(repository).family(family)
    if members.text_encoder is None:
        raise SourceError(f"family {family!r} has no text encoder: nothing could read the condition for a composer")
    dim = members.image_encoder.manifest.dim

    @lru_cache(maxsize=1)
    def features(count: int) -> tuple[Tensor, Tensor]:
        return _references(members, pictures, count), _conditions(members, frames, count)

    def sample(batch: int) -> tuple[Tensor, ...]:
        return features(batch)

    try:
        given = dimension(module, sample(2))
    except SourceError as error:
        raise SourceError(
            f"the composer does not read vectors of {dim} numbers, as family {family!r} has: {error}"
        ) from error
    if given != dim:
        raise SourceError(f"the composer gives {given} numbers, the space of family {family!r} has {dim}")
    with torch.no_grad():
        lengths = module(*sample(2)).norm(dim=1)
    if not bool(((lengths - 1).abs() < 1e-3).all()):
        raise SourceError(
            f"the composer's queries have the lengths {[round(x, 3) for x in lengths.tolist()]}, they must be unit "
            "vectors: end its forward() with torch.nn.functional.normalize(..., dim=1)"
        )
    signature = composer_signature(dim)
    return Part(
        f"{family}-composer",
        "composer",
        module,
        signature.inputs,
        signature.output,
        sample,
        "Takes raw features (unit vector times norm) and gives a unit query in the image encoder's space.",
        condition_templates=frames,
        precision=precision,
    )


def _frames(templates: Mapping[str, str]) -> dict[str, str]:
    for mode, frame in templates.items():
        if mode not in MODES:
            raise SourceError(f"a condition's mode is one of {', '.join(MODES)}, got {mode!r}")
        if frame.count("{}") != 1:
            raise SourceError(f"the text frame of {mode!r} must hold {{}} once, for the condition; got {frame!r}")
    return {**RAW, **templates}


def _references(family: Family, pictures: Pictures, count: int) -> Tensor:
    spec = preprocessing_of(family.image_encoder)
    session = open_session(family.image_encoder.file())
    shown = pictures(count)
    rows = [
        run_graph(session, np.stack([to_tensor(shown[i % len(shown)], spec) for i in range(start, stop)]))
        for start, stop in _chunks(count)
    ]
    return torch.from_numpy(np.concatenate(rows))


def _conditions(family: Family, frames: Mapping[str, str], count: int) -> Tensor:
    model = family.text_encoder
    if model is None:
        raise ManifestError("no text encoder. This is a bug.")
    encode, session = tokenizer_of(model), open_session(model.file())
    modes = sorted(frames)
    texts = [frames[modes[i % len(modes)]].replace("{}", text) for i, text in enumerate(golden.texts(count))]
    rows = [run_graph(session, encode(texts[start:stop]).ids) for start, stop in _chunks(count)]
    return torch.from_numpy(np.concatenate(rows))


def _chunks(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
