"""What to train and how long; no library is needed to say it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Method = Literal["combiner", "sum", "phrase-basis"]
Encoders = Literal["frozen", "fine-tune", "train"]
METHODS: Final[tuple[Method, ...]] = ("combiner", "sum", "phrase-basis")
ENCODERS: Final[tuple[Encoders, ...]] = ("frozen", "fine-tune", "train")


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """Lengths and rates of a run.

    Attributes:
        steps: At most.
        batch: Images a step.
        rate: Peak learning rate; warmed up, then cosine to zero.
        warmup: Steps until the peak.
        check_every: Steps between looks at the validation images.
        patience: Looks without a better one before training stops.
        phrase_weight: Of the loss that tells phrases true or false.
        name_weight: Of the loss that names facts; it fades out over the first 60 % of the steps.
        freeze_norms: Keep the statistics of batch norms: those of weights read back from a graph stand for a
            normalisation that was folded away.
        seed: Of batches and augmentation.
    """

    steps: int = 3000
    batch: int = 96
    rate: float = 1e-3
    warmup: int = 50
    check_every: int = 100
    patience: int = 8
    phrase_weight: float = 5.0
    name_weight: float = 10.0
    freeze_norms: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class CombinerPlan:
    """Sizes, lengths and rates of a run.

    Attributes:
        steps: At most.
        queries: Triplets a step.
        shared: Random images a step that are candidates of every query.
        rate: Peak learning rate; cosine to zero.
        weight_decay: Of AdamW.
        dropout: Of the Combiner; the paper's is 0.5.
        check_every: Steps between looks at the validation templates.
        patience: Looks without a better one before training stops.
        seed: Of weights and batches.
    """

    steps: int = 3000
    queries: int = 256
    shared: int = 256
    rate: float = 1e-3
    weight_decay: float = 0.02
    dropout: float = 0.3
    check_every: int = 100
    patience: int = 8
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What to train, and where to put it.

    Attributes:
        out: Model repository to publish into.
        name: The new family.
        work: Folder of checkpoints and features; a stopped run goes on from it.
        method: What composes.
        encoders: Whether they change.
        base: Repository of the family that is started from; None for the built-in one.
        family: That family; of no use to fresh encoders.
        views: Versions of each image that the Combiner sees; above 1 the others are slightly changed.
        threads: Of ONNX graphs; 0 uses every core.
        encoder_plan: Lengths and rates of encoder training.
        combiner_plan: Lengths and rates of the Combiner's.
    """

    out: Path
    name: str
    work: Path
    method: Method = "combiner"
    encoders: Encoders = "frozen"
    base: Path | None = None
    family: str = "shapes"
    views: int = 1
    threads: int = 0
    encoder_plan: EncoderPlan = field(default_factory=EncoderPlan)
    combiner_plan: CombinerPlan = field(default_factory=CombinerPlan)
