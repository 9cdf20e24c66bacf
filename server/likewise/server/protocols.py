"""The seams of the server: encoders and composers, and the galleries with their shards and writers.

Embedded and remote are two implementations of each; the router knows only these. Everything here may be called
concurrently from the event loop, is safe to cancel and never blocks.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from likewise.shards.protocols import F32, BulkWriter, ShardSearch, Writer
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2, model_service_pb2


@dataclass(frozen=True, slots=True)
class Encoded:
    """Raw (un-normalised) embeddings.

    Attributes:
        vectors: (n, dim) float32, finite.
        decode_us: Decoding and preprocessing, or tokenising, microseconds.
        encode_us: Queueing and inference, microseconds.
        warnings: What the caller should know ("text 0 was cut to 32 tokens").
    """

    vectors: F32
    decode_us: int = 0
    encode_us: int = 0
    warnings: tuple[common_pb2.Warning, ...] = ()


class ImageEncoder(Protocol):
    """Encoded images in, raw embeddings out."""

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        ...

    async def encode(self, images: Sequence[bytes]) -> Encoded:
        """Encode JPEG, PNG or WebP files; row i belongs to images[i].

        Raises:
            InvalidRequest: If an image cannot be read or is over a limit; `field` is "[i]".
            Overloaded: If the encoder's queue is full.
        """
        ...


class TextEncoder(Protocol):
    """Texts in, raw embeddings out."""

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        ...

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts; row i belongs to texts[i].

        Raises:
            InvalidRequest: If a text is over the model's limit and its policy is to refuse; `field` is "[i]".
            Overloaded: If the encoder's queue is full.
        """
        ...


class Composer(Protocol):
    """Reference and condition embeddings in, unit query vectors out."""

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        ...

    def condition_text(self, text: str, mode: int) -> str:
        """The text the composer was trained to read for a condition of this `ConditionMode`."""
        ...

    async def compose(self, references: F32, conditions: F32) -> F32:
        """(n, dim) unit vectors of n pairs of raw embeddings."""
        ...


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share one space: what a gallery names as its encoder.

    One value is one moment's choice of versions. A query takes it once, holds its `lease` while it uses the models, and
    so never mixes versions, whatever is promoted meanwhile.

    Attributes:
        name: Its name.
        space: Digest of the space that all of them write to.
        dim: Numbers of a vector of it.
        image: Encoder of images.
        text: Encoder of texts.
        composer: Composer of the two.
        compatible_with: Digest of an older space to the leading numbers of a vector that compare with its vectors.
        lease: Keeps the models from being freed inside the block; entered on the event loop, without awaiting anything
            between taking the family and entering it.
    """

    name: str
    space: str
    dim: int
    image: ImageEncoder | None
    text: TextEncoder | None
    composer: Composer | None
    compatible_with: Mapping[str, int] = field(default_factory=dict)
    lease: Callable[[], contextlib.AbstractContextManager[None]] = field(
        default=contextlib.nullcontext, compare=False, repr=False
    )


class Models(Protocol):
    """The models a router can use."""

    def family(self, name: str) -> Family:
        """The family of that name.

        Raises:
            NotFound: Naming the families there are.
        """
        ...

    def models(self) -> Sequence[model_service_pb2.Model]:
        """Every model version known, by name, then version."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class GalleryHandle:
    """A gallery and the parts that serve it; `shards[i]` is shard number i.

    A call takes it once and keeps it: the shards of a handle serve until the last call that holds it has ended, or as
    good as that, also when the gallery has other ones by then.

    Attributes:
        spec: Its description.
        shards: Its partitions.
        writer: Its writer.
        bulk: The writer once more, if it takes files of rows.
        read_only: Whether it takes no writes, for good.
    """

    spec: GallerySpec
    shards: tuple[ShardSearch, ...]
    writer: Writer
    bulk: BulkWriter | None = None
    read_only: bool = False


class Galleries(Protocol):
    """The galleries of a store and what serves them."""

    def get(self, name: str) -> GalleryHandle:
        """The gallery of that name.

        Raises:
            NotFound: If there is none.
        """
        ...

    def handles(self) -> Sequence[GalleryHandle]:
        """All galleries, by name."""
        ...

    async def create(self, spec: GallerySpec) -> GalleryHandle:
        """Make an empty gallery and its parts; returns when they serve.

        Raises:
            AlreadyExists: If the name is taken.
        """
        ...

    async def update(self, spec: GallerySpec, *, min_recall: float | None = None) -> GalleryHandle:
        """Give the gallery of `spec.name` this description; returns when its parts follow.

        A change that needs other shards builds them beside those that serve, checks them and switches; whatever goes
        wrong before, a cancelled call included, leaves the gallery as it was.

        Args:
            spec: All of the new description.
            min_recall: Lowest recall@10 of a new index to accept, in [0, 1]; None for `reshape.MIN_RECALL`.

        Raises:
            SpecChange: If rows already written do not fit it.
            FailedPrecondition: If new shards fail a check, or the gallery is being changed already.
        """
        ...

    async def delete(self, name: str) -> None:
        """Stop the gallery's parts and delete its data."""
        ...
