import importlib
from types import ModuleType

import pytest

from likewise.export.sources import libraries
from likewise.export.sources.checkpoint import SourceError


def test_a_torchvision_of_another_torch_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)

    with pytest.raises(SourceError, match=r"does not fit this torch \(operator .*open_clip cannot.*--index-url"):
        libraries.library("open_clip")


def test_a_library_without_torchvision_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> ModuleType:
        if name == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)

    assert libraries.library("json").dumps([]) == "[]"
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        libraries.library("no_such_library")
