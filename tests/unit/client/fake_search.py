"""SearchService of the fake server: exact cosine over a gallery's items, with everything that an answer can bring."""

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_filters import matches

from likewise.v1 import common_pb2, search_service_pb2, search_service_pb2_grpc
from likewise.wire import decode_vectors, encode_vector, encode_vectors, pack

if TYPE_CHECKING:
    from tests.unit.client.fake_server import FakeServer, Gallery

Request = Any
Context = grpc.ServicerContext


class FakeSearch(search_service_pb2_grpc.SearchServiceServicer):
    def __init__(self, server: "FakeServer") -> None:
        self._server = server

    def Search(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        with self._server.lock:
            return self._answer(request, gallery)

    def BatchSearch(self, request: Request, context: Context) -> Any:
        results = []
        for one in request.requests:
            gallery = self._server.gallery(one.gallery, context)
            if one.reference.item_id and one.reference.item_id not in gallery.items:
                missing = Failure(grpc.StatusCode.NOT_FOUND, f"no item {one.reference.item_id!r}", "ITEM_NOT_FOUND")
                results.append(search_service_pb2.BatchSearchResult(error=missing.status()))
            else:
                results.append(search_service_pb2.BatchSearchResult(response=self._answer(one, gallery)))
        return search_service_pb2.BatchSearchResponse(results=results)

    def SearchVectors(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.search.gallery, context)
        answer, scores, bounds, errors = search_service_pb2.SearchResponse(), b"", [0], []
        ids: list[str] = []
        for row, vector in enumerate(decode_vectors(request.vectors)):
            if np.linalg.norm(vector):
                one = search_service_pb2.SearchRequest()
                one.CopyFrom(request.search)
                one.reference.vector.CopyFrom(encode_vector(vector))
                answer = self._answer(one, gallery)
                ids += answer.hits.ids
                scores += answer.hits.scores
            else:
                wrong = Failure(grpc.StatusCode.INVALID_ARGUMENT, f"vectors[{row}]: all zeros", "INVALID_VECTOR")
                errors.append(search_service_pb2.RowError(row=row, error=wrong.status()))
            bounds.append(len(ids))
        answer.hits.CopyFrom(self._hits(request.search, gallery, ids, scores))
        return search_service_pb2.SearchVectorsResponse(answer=answer, offsets=pack(bounds, "<i4"), errors=errors)

    def Compose(self, request: Request, context: Context) -> Any:
        vector = common_pb2.Vector(dim=2, data=pack([0.6, 0.8], "<f4"))
        return search_service_pb2.ComposeResponse(vector=vector, composition="text")

    def Explain(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.request.gallery, context)
        items = [search_service_pb2.ItemExplanation(id=one, found=one in gallery.items) for one in request.ids]
        return search_service_pb2.ExplainResponse(response=self._answer(request.request, gallery), items=items)

    def _answer(self, request: Request, gallery: "Gallery") -> search_service_pb2.SearchResponse:
        query = self._query(request, gallery)
        scored = sorted(
            (
                (-float(_unit(stored.vector) @ query), item)
                for item, stored in gallery.items.items()
                if not request.HasField("filter") or matches(request.filter, stored.attributes)
            ),
        )
        best = scored[: request.k if request.HasField("k") else 10]
        total = len(gallery.items)
        return search_service_pb2.SearchResponse(
            hits=self._hits(request, gallery, [item for _, item in best], pack([-score for score, _ in best], "<f4")),
            coverage=search_service_pb2.Coverage(
                fraction=1.0, items_searched=total, items_total=total, shards_ok=1, shards_total=1
            ),
            timing=search_service_pb2.Timing(total_us=1500),
            plan=search_service_pb2.Plan(
                summary=f"exact over {total}",
                shards=[search_service_pb2.ShardPlan(kind=search_service_pb2.PLAN_KIND_EXACT, live=total)],
                composition="stored vector",
            ),
            models=[common_pb2.ModelRef(name="m", version=1, kind="composer")],
            version=gallery.version,
            warnings=[common_pb2.Warning(code="TEXT_CUT", message="the text was cut")],
            request_id=request.request_id,
        )

    def _hits(self, request: Request, gallery: "Gallery", ids: list[str], scores: bytes) -> Any:
        hits = search_service_pb2.Hits(
            ids=ids,
            scores=scores,
            attributes=gallery.columns(ids, request.mask.attributes),
            score_kind=search_service_pb2.SCORE_KIND_COSINE,
        )
        if request.mask.vectors and ids:
            hits.vectors.CopyFrom(encode_vectors([_unit(gallery.items[item].vector) for item in ids]))
        return hits

    def _query(self, request: Request, gallery: "Gallery") -> np.ndarray:
        reference = request.reference
        if reference.WhichOneof("kind") == "vector":
            return _unit(decode_vectors(reference.vector)[0])
        if reference.WhichOneof("kind") == "item_id" and reference.item_id in gallery.items:
            return _unit(gallery.items[reference.item_id].vector)
        return _unit(np.ones(gallery.spec.spaces[0].dim))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))
