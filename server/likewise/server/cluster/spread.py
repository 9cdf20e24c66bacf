"""Which node a replica belongs on, so that no two replicas of the same thing share one while there are enough."""

import zlib
from collections.abc import Mapping
from typing import Final

from likewise.server.cluster.parts import EncoderPart, Part, ShardPart

_RAY_NAMES: Final = {"num_cpus": "CPU", "num_gpus": "GPU"}


def node_of(part: Part, nodes: Mapping[str, Mapping[str, float]], need: Mapping[str, float]) -> str | None:
    """The node for a part; None leaves the choice to Ray: for writers, and where fewer than two nodes fit.

    Every controller comes to the same answer while the nodes are the same, whatever order it places the parts in:
    replica r of shard s takes the node r + s places after the gallery's own first one.

    Args:
        part: To be placed.
        nodes: Node id to what the node has in all ("CPU": 16.0, "GPU": 2.0, ...).
        need: What the part asks for, by Ray's option names ("num_gpus": 0.5).
    """
    match part:
        case ShardPart():
            place = zlib.crc32(part.spec.gallery_id.encode()) + part.shard + part.replica
        case EncoderPart():
            place = zlib.crc32(part.family.encode()) + part.replica
        case _:
            return None
    fitting = [
        node
        for node, has in sorted(nodes.items())
        if all(has.get(_RAY_NAMES[name], 0.0) >= amount for name, amount in need.items())
    ]
    return fitting[place % len(fitting)] if len(fitting) > 1 else None
