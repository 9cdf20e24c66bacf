"""The routing table: one value that says where everything is, published to whoever watches."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from likewise.internal.v1 import controller_service_pb2 as pb


class Board:
    """The table of the moment.

    Args:
        first_version: Version of the empty table it starts with. Later controllers of a cluster start higher than
            earlier ones got as long as clocks agree; routers take a new controller's first table in any case.
    """

    def __init__(self, *, first_version: int) -> None:
        self._table = pb.RoutingTable(version=first_version)
        self._changed = asyncio.Event()

    @property
    def table(self) -> pb.RoutingTable:
        """The newest table; not to be changed."""
        return self._table

    def publish(
        self,
        galleries: Iterable[pb.GalleryRoute],
        models: Iterable[pb.ModelRoute],
        families: Iterable[pb.FamilyRoute] = (),
    ) -> None:
        """Show a new table with a new version, unless it says the same as the one shown."""
        table = pb.RoutingTable(version=self._table.version, galleries=galleries, models=models, families=families)
        if table == self._table:
            return
        table.version += 1
        self._table = table
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self, known_version: int) -> AsyncIterator[pb.RoutingTable]:
        """Every table newer than `known_version`, the newest first; ones in between may be skipped."""
        while True:
            changed = self._changed
            if self._table.version > known_version:
                known_version = self._table.version
                yield self._table
            else:
                await changed.wait()
