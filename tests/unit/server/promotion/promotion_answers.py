"""What searches are to find under each version, and how a promotion that cannot be is told."""

from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from tests.unit.server.fakes import info
from tests.unit.server.model_fixtures import colour_embedding
from tests.unit.server.model_server import COLOURS

RED = (255, 0, 0)
ALL_1 = {"tiny-composer": 1, "tiny-image": 1, "tiny-text": 1}
ALL_2 = dict.fromkeys(ALL_1, 2)


def unit(vector: Any) -> Any:
    return np.asarray(vector) / np.linalg.norm(vector)


def oracle(query: Any, k: int = 10) -> list[str]:
    """Ids of the colours nearest to a query vector of DIM numbers."""
    rows = np.stack([unit(colour_embedding(colour)) for colour in COLOURS])
    found = (rows @ unit(query)).astype(np.float32)
    return [f"i{i:02d}" for i in sorted(range(len(rows)), key=lambda i: (-found[i], i))[:k]]


async def refused(
    call: Any, reason: str, code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION
) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert (caught.value.code(), info(caught.value).reason) == (code, reason)
    return caught.value
