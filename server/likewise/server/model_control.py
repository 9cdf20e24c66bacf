"""The seam through which model versions are loaded and freed while the server runs."""

from collections.abc import Sequence
from typing import Protocol

from likewise.v1 import model_service_pb2


class ModelControl(Protocol):
    """Loads and frees model versions while the server runs."""

    def models(self) -> Sequence[model_service_pb2.Model]:
        """Every model version known, by name, then version."""
        ...

    async def load(self, name: str, version: int | None) -> model_service_pb2.Model:
        """Open and warm a version beside the one in use; the highest version there is if none is named.

        Raises:
            NotFound: If there is no such model or version.
            FailedPrecondition: If the version cannot be opened; the message says why.
        """
        ...

    async def unload(self, name: str, version: int) -> None:
        """Let a version drain, then free it.

        Raises:
            NotFound: If there is no such model or version.
            FailedPrecondition: If the version is in use.
        """
        ...
