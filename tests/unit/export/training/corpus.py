"""Small corpora of the second world for the training tests, built once and shared."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from tests.unit.export.training.scenes import Scene, caption, sample_scene

from likewise.export.training.facts import Facts, collect
from likewise.export.training.mining import Triplets, mine
from likewise.export.training.parser import RuleParser
from likewise.export.training.slots import learn_slots


@dataclass(frozen=True)
class Corpus:
    """Scenes with captions, and what was read and mined."""

    scenes: list[Scene]
    captions: list[str]
    facts: Facts
    triplets: Triplets


@cache
def corpus(count: int = 300, *, silence: float = 0.0, seed: int = 0) -> Corpus:
    """``count`` scenes; the same arguments give the same corpus."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    captions = [caption(rng, scene, silence=silence) for scene in scenes]
    graphs = RuleParser().parse(captions)
    facts = collect(graphs, learn_slots(graphs))
    return Corpus(scenes, captions, facts, mine(facts, np.arange(count), seed=0))
