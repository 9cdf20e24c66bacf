"""Which models fit a gallery, and what of their vectors it takes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.server import spaces
from likewise.server.compose import compose_query
from likewise.server.errors import FailedPrecondition, InvalidRequest, NotFound
from likewise.server.protocols import Encoded, Family
from likewise.server.query import ConditionInput, TextReference
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import common_pb2, model_service_pb2

OLD, NEW = "sha256:old", "sha256:new"


class Texts:
    """Texts that are their own vectors: "1 0 2"."""

    model = common_pb2.ModelRef(name="texts", version=2, kind="text_encoder", space=NEW)

    async def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded(np.array([[float(number) for number in text.split()] for text in texts], np.float32))


class OneFamily:
    def __init__(self, family: Family) -> None:
        self.only = family

    def family(self, name: str) -> Family:
        if name != self.only.name:
            raise NotFound(name)
        return self.only

    def models(self) -> Sequence[model_service_pb2.Model]:
        return ()


FAMILY = Family("m", NEW, 4, None, Texts(), None, {OLD: 2})


def gallery(space: SpaceSpec) -> GallerySpec:
    return GallerySpec("g", "0" * 32, (space,))


@given(st.integers(1, 8), st.integers(1, 8), st.dictionaries(st.sampled_from(["a", "b", NEW]), st.integers(1, 8)))
def test_only_whole_vectors_of_an_older_space_compare(dim: int, other_dim: int, declared: dict[str, int]) -> None:
    assert spaces.leading(NEW, dim, declared, other=NEW, other_dim=dim) == dim
    found = spaces.leading(NEW, dim, declared, other="a", other_dim=other_dim)

    assert found == (other_dim if declared.get("a") == other_dim else None)


def test_a_gallery_of_the_models_own_space_takes_whole_vectors() -> None:
    space = SpaceSpec("s", 4, NEW, "m")
    fitting = spaces.fit(OneFamily(FAMILY), space, gallery(space))

    assert fitting is not None
    assert fitting.leading is None
    rows: F32 = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert fitting.taken(rows) is rows


def test_a_gallery_of_an_older_space_takes_the_first_numbers() -> None:
    space = SpaceSpec("s", 2, OLD, "m")
    fitting = spaces.fit(OneFamily(FAMILY), space, gallery(space))

    assert fitting is not None
    assert fitting.taken(np.arange(8, dtype=np.float32).reshape(2, 4)).tolist() == [[0, 1], [4, 5]]


def test_vectors_only_need_no_models() -> None:
    space = SpaceSpec("s", 4, "vectors:4")

    assert spaces.fit(OneFamily(FAMILY), space, gallery(space)) is None


@pytest.mark.parametrize("space", [SpaceSpec("s", 4, "sha256:third", "m"), SpaceSpec("s", 3, OLD, "m")])
def test_any_other_gallery_is_refused_with_both_digests(space: SpaceSpec) -> None:
    with pytest.raises(FailedPrecondition, match="encode into 'sha256:new'") as caught:
        spaces.fit(OneFamily(FAMILY), space, gallery(space))

    assert caught.value.reason == "SPACE_MISMATCH"
    assert caught.value.metadata == {"got": NEW, "expected": space.digest}


async def test_the_sum_of_conditions_is_made_whole_and_then_cut() -> None:
    conditions = [ConditionInput("3 0 0 4"), ConditionInput("0 1 0 0")]

    composed = await compose_query(FAMILY, 2, reference=None, conditions=conditions, leading=2)

    # Unit vectors are (0.6, 0, 0, 0.8) and (0, 1, 0, 0): cut first, they would weigh the same.
    np.testing.assert_allclose(composed.vector, np.array([0.6, 1.0]) / np.hypot(0.6, 1.0), rtol=1e-6)
    assert composed.composition == "sum of 2 texts, by the first 2 of 4 numbers"
    np.testing.assert_allclose(composed.conditions, [[1, 0], [0, 1]], atol=1e-6)


async def test_a_query_with_nothing_in_the_first_numbers_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"the first 2 numbers that the models 'm' make of this query are zero"):
        await compose_query(FAMILY, 2, reference=TextReference("0 0 1 0"), conditions=[], leading=2)
