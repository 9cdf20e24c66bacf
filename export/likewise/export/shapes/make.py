"""Makes the built-in model: ``python -m likewise.export.shapes.make``.

World, captions, triplets, training, validation, export with parity checks, and the benchmark on held-out
pairs, in this order. A run that was stopped goes on from its checkpoint.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from likewise.export.combiner import CombinerConfig
from likewise.export.model_repository import builtin_repository
from likewise.export.networks import ImageConfig, TextConfig
from likewise.export.runtime import load_family
from likewise.export.shapes import captions, conditions
from likewise.export.shapes.batches import Batches
from likewise.export.shapes.benchmark import Part, measure
from likewise.export.shapes.polish import train_combiner
from likewise.export.shapes.pool import Pool, build_pool
from likewise.export.shapes.publish import FAMILY, MAX_LENGTH, TOKENIZER_FILE, TorchFamily, publish
from likewise.export.shapes.train import Plan, ShapesModel, Trainer
from likewise.export.shapes.triplets import mine
from likewise.export.shapes.world import TRAINING_PAIRS
from likewise.export.tokenizer import Tokenizer, write_word_tokenizer

_LOG = logging.getLogger("likewise.export.shapes.make")
_THREADS: Final = 2
_REPORT_EVERY: Final = 100
_MODEL_FILE: Final = "model.pt"


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of; the defaults are those of the committed model."""

    work: Path
    out: Path
    clusters: int = 5000
    plan: Plan = field(default_factory=Plan)
    templates: int = 600
    workers: int = 2


def make(options: Options) -> dict[str, Any]:
    """Train (or continue), export and measure; returns the report that is also written to ``work/report.json``."""
    began = time.monotonic()
    torch.set_num_threads(_THREADS)
    options.work.mkdir(parents=True, exist_ok=True)
    _LOG.info("rendering %d clusters of scenes", options.clusters)
    pool = build_pool(options.plan.seed, options.clusters, TRAINING_PAIRS, workers=options.workers)
    triplets = mine(options.plan.seed, pool.graphs, range(len(pool.full)))
    _LOG.info("%d scenes, %d triplets, %.0f s", len(pool.full), len(triplets.kind), time.monotonic() - began)
    tokenizer, vocabulary = write_tokenizer(options.work / TOKENIZER_FILE, pool)
    batches = Batches(pool, triplets, tokenizer, seed=options.plan.seed)
    model = new_model(vocabulary, options.plan.seed)

    trainer = Trainer(model, batches, options.plan, options.work)
    trainer.run(on_step=_Progress(options.plan.steps))
    _LOG.info("Combiner alone, %d steps", options.plan.combiner_steps)
    train_combiner(model, batches, options.plan, on_step=_Progress(options.plan.combiner_steps))
    torch.save(model.state_dict(), options.work / _MODEL_FILE)

    validation = measure(
        TorchFamily(model, tokenizer), templates_per_task=200, designs=("strict",), splits=("validation",)
    )
    summary = {
        "validation": summarise(validation.parts[0]),
        "training": {"steps": options.plan.steps, "seconds": round(trainer.seconds), "scenes": len(pool.full)},
    }
    publish(model, options.work / TOKENIZER_FILE, options.out, evaluation=summary)
    report = measure(load_family(options.out, FAMILY), templates_per_task=options.templates)
    result = {"seconds": round(time.monotonic() - began), **summary, "report": report.to_json()}
    (options.work / "report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for part in report.parts:
        _LOG.info("%s, %s: %s", part.split, part.design, summarise(part))
    _LOG.info("done after %.0f s; wrote %s", time.monotonic() - began, options.out)
    return result


def snapshot(options: Options) -> None:
    """Export the checkpoint of a run as it is, trained or not; its Combiner has not had its last stage."""
    vocabulary = len(json.loads((options.work / TOKENIZER_FILE).read_text(encoding="utf-8"))["model"]["vocab"])
    model = new_model(vocabulary, options.plan.seed)
    state = torch.load(options.work / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    publish(
        model,
        options.work / TOKENIZER_FILE,
        options.out,
        evaluation={"training": {"steps": state["step"], "of": options.plan.steps}},
    )


def new_model(vocabulary: int, seed: int) -> ShapesModel:
    """An untrained model, the same for the same seed."""
    torch.manual_seed(seed)
    return ShapesModel(ImageConfig(), TextConfig(vocabulary, max_length=MAX_LENGTH), CombinerConfig())


def write_tokenizer(path: Path, pool: Pool) -> tuple[Tokenizer, int]:
    """Write the tokenizer over the words of captions and conditions.

    Returns:
        The tokenizer, and the size of its vocabulary.
    """
    synonyms = [text for texts in captions.SYNONYMS.values() for text in texts]
    variants = [text for texts in pool.variants for text in texts]
    words = [*pool.full, *variants, *synonyms, *conditions.vocabulary_texts()]
    vocabulary = write_word_tokenizer(path, words)
    return Tokenizer(path, max_length=MAX_LENGTH), vocabulary


def summarise(part: Part) -> dict[str, float]:
    """R@1 of the composer per task, its mean, that of the best sum, and the margin, in percent."""
    figures = {report.task: report.methods["composer"].at[1].value for report in part.tasks}
    figures |= {"mean": part.mean["composer"].value, "best sum": part.mean["image + text"].value}
    return {name: round(value, 1) for name, value in (figures | {"margin": part.margin.value}).items()}


class _Progress:
    def __init__(self, total: int) -> None:
        self._total = total
        self._began = time.monotonic()
        self._first: int | None = None
        self._seen: dict[str, list[float]] = {}

    def __call__(self, step: int, losses: dict[str, float]) -> None:
        if self._first is None:
            self._first = step - 1
        for name, value in losses.items():
            self._seen.setdefault(name, []).append(value)
        if step % _REPORT_EVERY and step != self._total:
            return
        elapsed = time.monotonic() - self._began
        left = elapsed / (step - self._first) * (self._total - step)
        means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in self._seen.items())
        _LOG.info("step %d/%d, %s, %.0f s left", step, self._total, means, left)
        self._seen.clear()


def _parse(arguments: list[str]) -> tuple[Options, bool]:
    defaults = Options(Path("model-work"), builtin_repository())
    parser = argparse.ArgumentParser(prog="python -m likewise.export.shapes.make", description=__doc__)
    parser.add_argument("--work", type=Path, default=defaults.work, help="folder of checkpoints, report")
    parser.add_argument("--out", type=Path, default=defaults.out, help="model repository to write into")
    parser.add_argument("--clusters", type=int, default=defaults.clusters, help="of some 14 scenes each")
    parser.add_argument("--steps", type=int, default=defaults.plan.steps, help="joint training steps")
    parser.add_argument("--combiner-steps", type=int, default=defaults.plan.combiner_steps)
    parser.add_argument("--seed", type=int, default=defaults.plan.seed)
    parser.add_argument("--templates", type=int, default=defaults.templates, help="per task in the report")
    parser.add_argument("--workers", type=int, default=defaults.workers, help="processes that render")
    parser.add_argument("--snapshot", action="store_true", help="export the checkpoint as it is and stop")
    parsed = parser.parse_args(arguments)
    plan = asdict(defaults.plan) | {
        "steps": parsed.steps,
        "combiner_steps": parsed.combiner_steps,
        "seed": parsed.seed,
    }
    options = Options(parsed.work, parsed.out, parsed.clusters, Plan(**plan), parsed.templates, parsed.workers)
    return options, bool(parsed.snapshot)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for exporter in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(exporter).setLevel(logging.WARNING)  # they tell every rewritten node
    options, only_export = _parse(sys.argv[1:] if arguments is None else arguments)
    if only_export:
        snapshot(options)
    else:
        make(options)


if __name__ == "__main__":
    main()
