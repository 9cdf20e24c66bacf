"""Sealed indexes on a GPU: flat in half precision, IVF and CAGRA, by FAISS built with cuVS.

FAISS's GPU objects are for one thread at a time, reads included: each device has one thread that makes, searches and
frees all of them, and its batches come from the shards' batchers. Nothing is served before a self-test: the plain GPU
build of FAISS takes a filter and ignores it (facebookresearch/faiss 1.15.1), which nothing in its answers shows. Scores
are those of the raw vectors here too; a GPU only says where to look.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from likewise.shards.index import Found, SealedIndex, faiss
from likewise.shards.index_build import BuildStopped
from likewise.shards.planner import IndexTraits
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import GPU_KINDS, Recipe, default_nlist, default_nprobe, training_positions
from likewise.shards.spec import IndexSpec, SpecError

_T = TypeVar("_T")
Mask = npt.NDArray[np.bool_]

KINDS: Final = GPU_KINDS
FLAT, IVF, CAGRA = KINDS

TEMP_BYTES: Final = 512 << 20
"""Scratch memory of a device, all indexes together; FAISS would take 1.5 GiB."""

PINNED_BYTES: Final = 64 << 20
MAX_DEPTH: Final = 16_384
"""Largest number of neighbours that cuVS gives."""

_ADD_ROWS: Final = 65_536
_TESTED_QUERIES: Final = 16
_TESTED_DEPTH: Final = 10
_LEAST_RECALL: Final = 0.9
_HALF_ERROR: Final = 2e-3  # of an inner product of unit vectors in half precision

Search = Callable[[F32, int, Mask | None], tuple[F32, I64]]
"""(n, d) queries, depth, allowed rows -> (n, depth) scores and positions, -1 in empty places."""


class GpuUnfit(RuntimeError):
    """A GPU that would give wrong answers, or none."""


class Held:
    """A FAISS index on a GPU, until it is let go."""

    def __init__(self, gpu_index: Any) -> None:
        self.index: Any = gpu_index

    def clear(self) -> None:
        """Let it go; on the device's thread."""
        self.index = None


class Device:
    """One GPU: its memory, and the one thread that may touch it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"likewise-gpu-{number}")
        self._resources: Any = None

    def run(self, work: Callable[[Any], _T]) -> _T:
        """`work(resources)` on the device's thread, waited for; from any other thread."""
        return self._thread.submit(self._with_resources, work).result()

    def free(self, held: Held) -> None:
        """Let go of what is held, on the device's thread; not waited for."""
        with contextlib.suppress(RuntimeError):  # the process ends, and with it everything on the device
            self._thread.submit(held.clear)

    def _with_resources(self, work: Callable[[Any], _T]) -> _T:
        if self._resources is None:
            resources = faiss.StandardGpuResources()
            resources.setTempMemory(TEMP_BYTES)
            resources.setPinnedMemory(PINNED_BYTES)
            self._resources = resources
        return work(self._resources)


_making = threading.Lock()


@functools.lru_cache(maxsize=64)
def _device(number: int) -> Device:
    return Device(number)


def device(number: int = 0) -> Device:
    """The one `Device` of a GPU in this process."""
    with _making:
        return _device(number)


def gpus() -> int:
    """GPUs that FAISS can use; 0 for a build without support for them."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def check(spec: IndexSpec, *, field: str = "spec.index.kind") -> None:
    """Raise for a kind that needs a GPU where there is none.

    Raises:
        SpecError: Saying what is missing.
    """
    if spec.kind.lower() not in KINDS:
        return
    if not hasattr(faiss, "StandardGpuResources"):
        raise SpecError(field, f"{spec.kind!r} needs FAISS for GPUs: pip install 'likewise[gpu]' in place of [cpu]")
    if gpus() == 0:
        raise SpecError(field, f"{spec.kind!r} needs a GPU, and FAISS finds none here")


@dataclass(frozen=True)
class GpuIndex(SealedIndex):
    """A FAISS index on a GPU; `faiss_index` is a `Held` of it, cleared on the device's thread when this goes.

    Attributes:
        device: Where it is.
        row_bytes: What a row takes there.
        nlist: Lists of IVF, else 0.
        count: Rows in it.
    """

    device: Device | None = None
    row_bytes: int = 0
    nlist: int = 0
    count: int = 0

    @property
    def filters(self) -> bool:
        """See `SealedIndex.filters`."""
        return True

    @property
    def rows(self) -> int:
        """Rows in it."""
        return self.count

    @property
    def memory_bytes(self) -> int:
        """Nothing of the host's memory."""
        return 0

    @functools.cached_property
    def traits(self) -> IndexTraits:
        """See `SealedIndex.traits`."""
        kind = {IVF: "ivf", CAGRA: "hnsw"}.get(self.recipe.factory, "other")
        return IndexTraits(
            kind=kind,
            rows=self.rows,
            lossy=False,  # halves order rows nearly as floats do: the default over-fetch covers what they confuse
            ef=self.ef,
            nlist=self.nlist,
            nprobe=self.nprobe or default_nprobe(self.nlist),
            filters=True,
        )

    def search(self, queries: F32, depth: int, *, ef: int, nprobe: int, mask: Mask | None = None) -> Found:
        """See `SealedIndex.search`; only rows in `mask` are found."""
        held, factory = self.faiss_index, self.recipe.factory
        assert self.device is not None
        scores, positions = self.device.run(
            lambda _: _search(held.index, factory, queries, min(depth, MAX_DEPTH), ef=ef, nprobe=nprobe, mask=mask)
        )
        return Found(positions, scores)

    def __del__(self) -> None:
        """Free the device's memory where it may be touched."""
        if self.device is not None:
            self.device.free(self.faiss_index)


def build(
    rows: int,
    dim: int,
    wanted: Recipe,
    spec: IndexSpec,
    *,
    gather: Callable[[I64], F32],
    stop: Callable[[], bool] = lambda: False,
    on: Device | None = None,
) -> GpuIndex:
    """Build an index on a GPU over positions 0 to rows - 1, and test it.

    Args:
        rows: How many.
        dim: Numbers a vector.
        wanted: One of `KINDS`.
        spec: Where the parameters of a search come from.
        gather: (m, dim) vectors of positions.
        stop: Looked at between pieces.
        on: The device; the first one when None.

    Raises:
        BuildStopped: If `stop()` was true.
        GpuUnfit: If the index fails its self-test.
        RuntimeError: FAISS's reason, for example too little memory.
    """
    where = on or device()
    nlist = (spec.nlist or default_nlist(rows)) if wanted.factory == IVF else 0
    made = where.run(lambda resources: _empty(resources, where.number, dim, wanted.factory, nlist))
    held = Held(made)
    try:
        if wanted.factory == CAGRA:  # takes all rows at once: it builds its graph over them
            everything = np.ascontiguousarray(gather(np.arange(rows)))
            where.run(lambda _: made.train(everything))
            del everything
        else:
            if wanted.factory == IVF:
                sample = np.ascontiguousarray(gather(training_positions(rows, nlist)))
                where.run(lambda _: made.train(sample))
                del sample
            for start in range(0, rows, _ADD_ROWS):
                if stop():
                    raise BuildStopped
                piece = np.ascontiguousarray(gather(np.arange(start, min(start + _ADD_ROWS, rows))))
                where.run(functools.partial(_add, made, piece))
        tested = np.unique(np.linspace(0, rows - 1, _TESTED_QUERIES).astype(np.int64))
        effort = {"ef": 256, "nprobe": max(nlist, 1)}
        self_test(
            lambda queries, depth, mask: where.run(
                lambda _: _search(made, wanted.factory, queries, depth, mask=mask, **effort)
            ),
            rows,
            gather,
            tested,
        )
    except BaseException:
        del made
        where.free(held)
        raise
    return GpuIndex(
        recipe=wanted,
        faiss_index=held,
        vectors=None,
        trained_rows=rows,
        nprobe=spec.nprobe or 0,
        ef=spec.ef or 0,
        device=where,
        row_bytes=(2 if wanted.factory == FLAT else 4) * dim,
        nlist=nlist,
        count=rows,
    )


def self_test(search: Search, rows: int, gather: Callable[[I64], F32], tested: I64) -> None:
    """Ask for stored rows under a filter and compare with the same on the CPU.

    Every other row is allowed, so that each query's own row is now allowed and now not: a filter that is ignored shows
    at once.

    Args:
        search: Of the index to test.
        rows: How many it has.
        gather: (m, dim) unit vectors of positions.
        tested: Positions whose vectors are asked for.

    Raises:
        GpuUnfit: If a row outside the filter is found, scores are not those of the CPU, or too little is found.
    """
    queries = np.ascontiguousarray(gather(tested))
    depth = min(_TESTED_DEPTH, (rows + 1) // 2)
    for parity in (0, 1):
        mask = np.arange(rows) % 2 == parity
        if mask.sum() < depth:
            continue
        scores, positions = search(queries, depth, mask)
        found = positions >= 0
        if not mask[positions[found]].all():
            raise GpuUnfit("the GPU's FAISS ignores filters: install faiss-gpu-cuvs in place of faiss-gpu")
        exact = np.einsum("nkd,nd->nk", gather(np.maximum(positions, 0).ravel()).reshape(*positions.shape, -1), queries)
        if not np.allclose(scores[found], exact[found], atol=_HALF_ERROR):
            worst = float(np.abs(scores[found] - exact[found]).max())
            raise GpuUnfit(f"scores of the GPU are off by {worst:.2g} from those of the CPU, at most {_HALF_ERROR} is")
        truth = _truth(queries, rows, gather, mask, depth)
        recall = float(np.mean([len(set(a) & set(b)) / depth for a, b in zip(positions, truth, strict=True)]))
        if recall < _LEAST_RECALL:
            raise GpuUnfit(f"the GPU finds {recall:.2f} of the nearest rows, at least {_LEAST_RECALL} is expected")


def _truth(queries: F32, rows: int, gather: Callable[[I64], F32], mask: Mask, depth: int) -> I64:
    best_scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
    best = np.full((len(queries), depth), -1, dtype=np.int64)
    for start in range(0, rows, _ADD_ROWS):
        slots = np.arange(start, min(start + _ADD_ROWS, rows))
        slots = slots[mask[slots]]
        scores = np.concatenate((best_scores, queries @ gather(slots).T), axis=1)
        names = np.concatenate((best, np.broadcast_to(slots, (len(queries), len(slots)))), axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        best_scores, best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(names, order, axis=1)
    return best


def _empty(resources: Any, number: int, dim: int, factory: str, nlist: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if factory == FLAT:
        config = faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16, config.use_cuvs = number, True, True
        return faiss.GpuIndexFlat(resources, dim, metric, config)
    if factory == IVF:
        config = faiss.GpuIndexIVFFlatConfig()
        config.device, config.use_cuvs = number, True
        return faiss.GpuIndexIVFFlat(resources, dim, nlist, metric, config)
    config = faiss.GpuIndexCagraConfig()
    config.device = number
    return faiss.GpuIndexCagra(resources, dim, metric, config)


def _add(gpu_index: Any, rows: F32, resources: Any) -> None:
    gpu_index.add(rows)


def _search(
    gpu_index: Any, factory: str, queries: F32, depth: int, *, ef: int, nprobe: int, mask: Mask | None
) -> tuple[F32, I64]:
    """On the device's thread."""
    bits = None if mask is None else np.packbits(mask, bitorder="little")
    # A bitmap is copied to the device as it is; any other selector would be asked row by row.
    selector = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
    if factory == IVF:
        parameters = faiss.SearchParametersIVF(nprobe=max(1, nprobe), **selector)
    elif factory == CAGRA:
        parameters = faiss.SearchParametersCagra(**selector)
        parameters.itopk_size = 32 * -(-max(ef, depth) // 32)
    else:
        parameters = faiss.SearchParameters(**selector)
    scores, positions = gpu_index.search(np.ascontiguousarray(queries), depth, params=parameters)
    return np.asarray(scores), np.asarray(positions)
