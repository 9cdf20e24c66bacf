"""The sources' libraries, imported when they are needed, and what is said when they do not fit each other."""

import importlib
from typing import Any

from likewise.export.sources.checkpoint import SourceError


def library(name: str) -> Any:
    """A library that reads pictures with torchvision.

    Raises:
        SourceError: torchvision is there and was built for another torch, so that neither it nor what uses it can be
            imported.
        ModuleNotFoundError: The library is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        # transformers does without it.
        pass
    except (ImportError, RuntimeError) as error:
        raise SourceError(
            f"torchvision does not fit this torch ({error}), and {name} cannot be used without it: install the two "
            "of one release from one index (pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu)"
        ) from error
    return importlib.import_module(name)
