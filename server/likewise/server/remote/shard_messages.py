"""A shard's values to `likewise.internal.v1` messages and back. Pure; both ends use it, so they cannot drift."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from likewise import wire
from likewise.internal.v1 import shard_service_pb2 as pb
from likewise.server.errors import InvalidRequest
from likewise.server.remote import arrow_ipc
from likewise.shards import layout
from likewise.shards.protocols import F32, Delta, Exclusion, Rows, SearchOptions, ShardHits
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2, search_service_pb2


def search_request(address: pb.ShardAddress, queries: F32, options: SearchOptions) -> pb.ShardServiceSearchRequest:
    """(n, dim) queries and what they share."""
    request = pb.ShardServiceSearchRequest(
        address=address,
        vectors=wire.pack(queries, "<f4"),
        space=options.space,
        k=options.k,
        filter=filter_message(options.filter),
        params=search_service_pb2.SearchParams(
            exact=options.exact,
            target_recall=options.target_recall,
            ef=options.ef,
            nprobe=options.nprobe,
            over_fetch=options.over_fetch,
        ),
        exclusions=[pb.Exclusion(ids=each.ids, content=each.content) for each in options.exclusions],
        attributes=options.attributes,
        bring_vectors=options.vectors,
        min_version=options.min_version,
    )
    return request


def search_options(request: pb.ShardServiceSearchRequest) -> SearchOptions:
    """What the queries of a request share."""
    params = request.params
    return SearchOptions(
        space=request.space,
        k=request.k,
        filter=filter_bytes(request.filter if request.HasField("filter") else None),
        exact=params.exact if params.HasField("exact") else None,
        ef=params.ef if params.HasField("ef") else None,
        nprobe=params.nprobe if params.HasField("nprobe") else None,
        over_fetch=params.over_fetch if params.HasField("over_fetch") else None,
        target_recall=params.target_recall if params.HasField("target_recall") else None,
        exclusions=tuple([_exclusion(each) for each in request.exclusions]),
        attributes=tuple(request.attributes),
        vectors=request.bring_vectors,
        min_version=request.min_version,
    )


def halves(options: SearchOptions, half: int) -> tuple[SearchOptions, SearchOptions]:
    """What the first `half` queries share, and what the others do."""
    left_out = options.exclusions
    return options._replace(exclusions=left_out[:half]), options._replace(exclusions=left_out[half:])


def search_response(hits: ShardHits) -> pb.ShardServiceSearchResponse:
    """Hits as they travel."""
    return pb.ShardServiceSearchResponse(
        ids=hits.ids,
        scores=wire.pack(hits.scores, "<f4"),
        offsets=wire.pack(hits.offsets, "<i8"),
        attributes=b"" if hits.attributes is None else arrow_ipc.encode(hits.attributes),
        vectors=b"" if hits.vectors is None else wire.pack(hits.vectors, "<f4"),
        plan=hits.plan,
        version=hits.version,
        queue_us=hits.queue_us,
        search_us=hits.search_us,
        excluded=hits.excluded,
    )


def shard_hits(response: pb.ShardServiceSearchResponse, *, dim: int, options: SearchOptions) -> ShardHits:
    """Hits as they were; arrays are read-only views of the message.

    Args:
        response: The shard's answer.
        dim: Numbers a vector of the space searched.
        options: What was asked for; decides whether an empty column means none or no hits.
    """
    return ShardHits(
        ids=list(response.ids),
        scores=wire.unpack(response.scores, "<f4"),
        offsets=wire.unpack(response.offsets, "<i8"),
        attributes=arrow_ipc.decode(response.attributes) if response.attributes else None,
        vectors=wire.unpack(response.vectors, "<f4").reshape(-1, dim) if options.vectors else None,
        plan=response.plan,
        version=response.version,
        queue_us=response.queue_us,
        search_us=response.search_us,
        excluded=list(response.excluded),
    )


def join_hits(first: ShardHits, second: ShardHits) -> ShardHits:
    """Hits of the first's queries, then of the second's, as if they had been asked in one call."""
    return ShardHits(
        ids=[*first.ids, *second.ids],
        scores=np.concatenate([first.scores, second.scores]),
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        attributes=_joined_batches(first.attributes, second.attributes),
        vectors=_joined_arrays(first.vectors, second.vectors),
        plan=second.plan,
        version=min(first.version, second.version),
        queue_us=first.queue_us + second.queue_us,
        search_us=first.search_us + second.search_us,
        excluded=[*first.excluded, *second.excluded],
    )


def rows_response(rows: Rows) -> pb.FetchResponse:
    """Rows as they travel."""
    return pb.FetchResponse(
        rows=arrow_ipc.encode(rows.batch),
        vectors=b"" if rows.vectors is None else wire.pack(rows.vectors, "<f4"),
        norms=b"" if rows.norms is None else wire.pack(rows.norms, "<f4"),
        version=rows.version,
        dim=0 if rows.vectors is None else rows.vectors.shape[1],
    )


def shard_rows(response: pb.FetchResponse, *, vectors: bool) -> Rows:
    """Rows as they were; arrays are read-only views of the message."""
    batch = arrow_ipc.decode(response.rows)
    names = batch.schema.names[2:]
    return Rows(
        ids=batch.column("id").to_pylist(),
        content=batch.column("content").to_numpy(),
        attributes=batch.select(names) if names else None,
        vectors=wire.unpack(response.vectors, "<f4").reshape(batch.num_rows, response.dim) if vectors else None,
        norms=wire.unpack(response.norms, "<f4") if vectors else None,
        version=response.version,
    )


def join_rows(first: Rows, second: Rows) -> Rows:
    """The first's rows, then the second's; the version is the older one."""
    version = min(first.version, second.version)
    if not first.ids or not second.ids:
        return replace(first if first.ids else second, version=version)
    return Rows(
        ids=[*first.ids, *second.ids],
        content=np.concatenate((first.content, second.content)),
        attributes=_joined_batches(first.attributes, second.attributes),
        vectors=_joined_arrays(first.vectors, second.vectors),
        norms=_joined_arrays(first.norms, second.norms),
        version=version,
    )


def apply_request(address: pb.ShardAddress, delta: Delta) -> pb.ApplyRequest:
    """A committed change as it travels."""
    return pb.ApplyRequest(
        address=address,
        base_version=delta.base_version,
        version=delta.version,
        upserts=arrow_ipc.encode(delta.upserts) if delta.upserts.num_rows else b"",
        deleted_ids=delta.deleted_ids,
    )


def delta(request: pb.ApplyRequest, spec: GallerySpec) -> Delta:
    """The committed change of a request to a shard of this gallery."""
    return Delta(
        base_version=request.base_version,
        version=request.version,
        upserts=arrow_ipc.decode(request.upserts) if request.upserts else layout.empty_batch(spec),
        deleted_ids=list(request.deleted_ids),
    )


def filter_message(serialised: bytes) -> common_pb2.Filter | None:
    """The filter of `SearchOptions.filter`; None for b""."""
    return common_pb2.Filter.FromString(serialised) if serialised else None


def filter_bytes(message: common_pb2.Filter | None) -> bytes:
    """The filter as `SearchOptions.filter` has it: deterministic, so that equal filters share a batch and a bitmap."""
    return b"" if message is None else message.SerializeToString(deterministic=True)


def queries_matrix(data: bytes, *, dim: int) -> F32:
    """(n, dim) float32 view of a request's vectors.

    Raises:
        InvalidRequest: If the bytes are no whole number of rows.
    """
    if len(data) % (4 * dim):
        raise InvalidRequest(f"{len(data)} bytes are no whole rows of {dim} float32", field="vectors")
    return np.frombuffer(data, dtype="<f4").reshape(-1, dim)


def _joined_arrays(first: F32 | None, second: F32 | None) -> F32 | None:
    return None if first is None or second is None else np.concatenate([first, second])


def _exclusion(message: pb.Exclusion) -> Exclusion:
    return Exclusion(tuple(message.ids), message.content if message.HasField("content") else None)


def _joined_batches(first: pa.RecordBatch | None, second: pa.RecordBatch | None) -> pa.RecordBatch | None:
    if first is None or second is None:
        return None
    return arrow_ipc.join([first, second], first.schema)
