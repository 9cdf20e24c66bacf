"""Searches told apart by number, and a server that says which of them came together."""

from typing import Any

from likewise.client import LikewiseError
from likewise.client.channel import ChannelConfig
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.vector_search import VectorSearch, vector_search
from likewise.client.versions import GalleryMemory
from likewise.v1 import search_service_pb2 as pb
from likewise.wire import decode_vectors

CONFIG = ChannelConfig(target="nowhere:1")
MEMORY = GalleryMemory("g")


def search(number: int, **query: Any) -> VectorSearch:
    """A search whose vector tells it apart."""
    asked: Any = {"vector": [number, 1.0], **query}
    made = vector_search(MEMORY, asked)
    assert made is not None
    return made


def numbers(call: Call[Any]) -> list[int]:
    """Which searches a call carries."""
    message: Any = call.request
    vectors = message.vectors if isinstance(message, pb.SearchVectorsRequest) else message.reference.vector
    return [int(number) for number in decode_vectors(vectors)[:, 0]]


class Answers:
    """What the server says: the hit of each search is its number; failures as told.

    Attributes:
        calls: Numbers of the searches of every call, as they came.
        left_s: What each call was given of time.
        errors: By number: in place of its hits, when it is in company.
        alone: By number: raised when it comes alone.
        failures: By the number of a call: raised instead of an answer.
    """

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.left_s: list[float | None] = []
        self.errors: dict[int, LikewiseError] = {}
        self.alone: dict[int, LikewiseError] = {}
        self.failures: dict[int, BaseException] = {}

    def enter(self, call: Call[Any], timeout: float | None) -> int:
        self.calls.append(numbers(call))
        self.left_s.append(timeout)
        return len(self.calls) - 1

    def of(self, call: Call[Any], index: int) -> Any:
        if failure := self.failures.get(index):
            raise failure
        asked = numbers(call)
        if isinstance(call.request, pb.SearchRequest):
            if failure := self.alone.get(asked[0]):
                raise failure
            return _hits(asked[0])
        return [self.errors.get(number) or _hits(number) for number in asked]


def _hits(number: int) -> Hits:
    return Hits(pb.SearchResponse(hits=pb.Hits(ids=[str(number)])))
