"""Searches by a vector alone: one, several that came at the same time, and the rows of a matrix.

Those that differ in nothing but the vector go as one SearchVectors: a matrix, with what they share told once.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from likewise.client import rpc
from likewise.client.errors import InvalidArgument, LikewiseError, from_status
from likewise.client.hits import Hits, hits_of_rows
from likewise.client.references import float_array, packed_vector
from likewise.client.requests import DEFAULT_K, Query, batch_calls, search_form
from likewise.client.rpc import Call, make_call
from likewise.client.versions import GalleryMemory
from likewise.v1 import common_pb2 as common_pb
from likewise.v1 import search_service_pb2 as search_pb
from likewise.wire import encode_vectors, unpack

_OF_VECTOR_SEARCH: Final = frozenset(Query.__annotations__) - {
    *("image", "text", "id", "condition", "mode", "conditions", "explanation", "request_id")
}
_FORMS_KEPT: Final = 64
MAX_ROWS: Final = 256  # of a SearchVectors, as search_service.proto has it
_MAX_HITS: Final = 65_536  # of more than one row
_MAX_HITS_WITH_MORE: Final = 4_096  # an answer with vectors of 4,096 dimensions is then 64 MiB
_MATRIX_BYTES: Final = 4 << 20  # of rows a message: enough to amortise a call, little enough to flow


Kind = tuple[bytes, int, int]
"""What searches that may travel together have in common: all but the vector, its dimension and what its numbers are."""


class VectorForm(NamedTuple):
    """All of a search by vector but the numbers.

    Attributes:
        request: The message without its vector.
        dim: How many numbers there are.
        dtype: What each is.
        kind: Equal for searches that differ in nothing but the numbers.
        most: How many such vectors go in one call.
    """

    request: search_pb.SearchRequest
    dim: int
    dtype: common_pb.DType.ValueType
    kind: Kind
    most: int


class VectorSearch(NamedTuple):
    """A search by one vector alone, without an id of its own: it takes that of the call it travels in.

    Attributes:
        form: All of it but the numbers.
        data: The numbers, as they travel.
    """

    form: VectorForm
    data: bytes

    def call(self) -> Call[Hits]:
        """It as SearchService.Search."""
        request = search_pb.SearchRequest()
        request.CopyFrom(self.form.request)
        vector = request.reference.vector
        vector.dtype, vector.dim, vector.data = self.form.dtype, self.form.dim, self.data
        return make_call(rpc.SEARCH, request, Hits)


def vector_search(memory: GalleryMemory, query: Query) -> VectorSearch | None:
    """The search of a query that has a vector, no conditions and no request_id; None for any other.

    Raises:
        InvalidArgument: As `likewise.client.requests.search_request`.
    """
    if query.get("vector") is None or not _OF_VECTOR_SEARCH.issuperset(query):
        return None
    vector = packed_vector(query["vector"], "vector")
    if isinstance(vector, common_pb.MultiVector):
        return None
    return VectorSearch(_known_form(memory, query, vector.dim, vector.dtype), vector.data)


def together(searches: Sequence[VectorSearch]) -> Call[list[Hits | LikewiseError]]:
    """Searches of one kind as one SearchVectors, answered in order."""
    first = searches[0]
    request = _request(first.form)
    vectors = request.vectors
    vectors.dtype, vectors.dim = first.form.dtype, first.form.dim
    vectors.data = b"".join([search.data for search in searches])
    return _call(request)


def many_calls(
    memory: GalleryMemory, queries: Sequence[Query] | npt.NDArray[Any], shared: Query
) -> Iterator[Call[list[Hits | LikewiseError]]]:
    """Many searches in as few calls as the limits allow, in order: the rows of a matrix as SearchVectors.

    Args and errors as of `likewise.client.requests.batch_calls`, which makes the calls for everything else.
    """
    plain = "vector" not in shared and _OF_VECTOR_SEARCH.issuperset(shared)
    if isinstance(queries, np.ndarray) and queries.ndim == 2 and plain:
        return _matrix_calls(memory, queries, shared)
    return batch_calls(memory, queries, shared)


def _matrix_calls(
    memory: GalleryMemory, matrix: npt.NDArray[Any], shared: Query
) -> Iterator[Call[list[Hits | LikewiseError]]]:
    rows = float_array(matrix, "queries")
    if not rows.shape[1]:
        raise InvalidArgument(f"queries must have columns, got an array of the shape {rows.shape}", field="queries")
    half = rows.dtype == np.float16
    form = _known_form(memory, shared, rows.shape[1], common_pb.DTYPE_FLOAT16 if half else common_pb.DTYPE_FLOAT32)
    for start in range(0, len(rows), form.most):
        request = _request(form)
        request.vectors.CopyFrom(encode_vectors(rows[start : start + form.most]))
        yield _call(request, start)


def _request(form: VectorForm) -> search_pb.SearchVectorsRequest:
    """A request without its vectors, to be filled in place: as an argument 64 KiB of them took 80 us instead of 3."""
    request = search_pb.SearchVectorsRequest()
    request.search.CopyFrom(form.request)
    return request


def _call(request: search_pb.SearchVectorsRequest, start: int = 0) -> Call[list[Hits | LikewiseError]]:
    return make_call(rpc.SEARCH_VECTORS, request, functools.partial(_row_results, start=start))


def _row_results(message: search_pb.SearchVectorsResponse, *, start: int) -> list[Hits | LikewiseError]:
    """The outcome of each row of a call, whose first is row `start` of the caller's matrix."""
    results: list[Hits | LikewiseError] = list(hits_of_rows(message.answer, unpack(message.offsets, "<i4").tolist()))
    for error in message.errors:
        results[error.row] = _error_of_row(error, start)
    return results


def _error_of_row(error: search_pb.RowError, start: int) -> LikewiseError:
    """An error by the place that its row has in the caller's matrix; the server knows that in the call."""
    found, theirs, ours = from_status(error.error), f"vectors[{error.row}]", f"queries[{start + error.row}]"
    found.args = (str(found).replace(theirs, ours, 1),)
    found.field = found.field.replace(theirs, ours, 1)
    return found


def _known_form(memory: GalleryMemory, query: Query, dim: int, dtype: common_pb.DType.ValueType) -> VectorForm:
    """The form of a query by such a vector, made once for callers that ask for the same again and again."""
    # With their types: 1, 1.0 and True are equal.
    given = tuple([(name, type(value), value) for name, value in query.items() if name != "vector"])
    key = memory.newest, dim, dtype, given
    try:
        form = memory.forms.get(key)
    except TypeError:  # a list, which nobody can look up by
        return _vector_form(memory, query, dim, dtype)
    if form is None:
        form = _vector_form(memory, query, dim, dtype)
        if len(memory.forms) >= _FORMS_KEPT:
            memory.forms.clear()
        memory.forms[key] = form
    return form


def _vector_form(memory: GalleryMemory, query: Query, dim: int, dtype: common_pb.DType.ValueType) -> VectorForm:
    request = search_form(memory, query)
    wanted = max(1, request.k if request.HasField("k") else DEFAULT_K)
    limit = _MAX_HITS_WITH_MORE if request.mask.vectors or request.mask.attributes else _MAX_HITS
    row_bytes = dim * (2 if dtype == common_pb.DTYPE_FLOAT16 else 4)
    most = max(1, min(MAX_ROWS, limit // wanted, _MATRIX_BYTES // row_bytes))
    return VectorForm(request, dim, dtype, (request.SerializeToString(deterministic=True), dim, dtype), most)
