"""Models of a small repository whose graphs open when they are let, and what is open and in use of them."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from likewise.export.model_repository import Model
from likewise.server.batcher import BatchLimits
from likewise.server.graphs import OpenGraph, open_graph
from likewise.server.images import ImageLimits
from likewise.server.lineup import History, Lineup, changed
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.protocols import Family
from likewise.server.session import Runtime
from likewise.v1 import model_service_pb2 as pb

RED = (255, 0, 0)


class Gate:
    """Opens graphs, and can hold an opening up."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.opened: list[str] = []
        self.together = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, model: Model, runtime: Runtime) -> OpenGraph:
        name = f"{model.manifest.name}/{model.manifest.version}"
        with self.lock:
            self.together += 1
            self.most = max(self.most, self.together)
        self.loop.call_soon_threadsafe(self.begun.put_nowait, name)
        assert self.free.wait(30)
        with self.lock:
            self.together -= 1
            self.opened.append(name)
        return open_graph(model, runtime)


@asynccontextmanager
async def gated_models(folder: Path, gate: Gate) -> AsyncIterator[OnnxModels]:
    """The models of a repository, open."""
    made = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=8, max_items=64),
        images=ImageLimits(),
        workers=2,
        open_graph=gate,
    )
    await made.open()
    yield made
    gate.free.set()
    await made.close()


def state(models: OnnxModels, name: str, version: int) -> str:
    (found,) = (model for model in models.models() if (model.name, model.version) == (name, version))
    return pb.ModelState.Name(found.state).removeprefix("MODEL_STATE_")


def session_of(models: OnnxModels, name: str, version: int) -> "weakref.ref[Any]":
    opened = models._versions.slot((name, version))._opened
    assert opened is not None
    return weakref.ref(opened.graph)


def in_use(models: OnnxModels) -> dict[str, int]:
    return {model.name: model.version for model in models.models() if model.in_use}


def wanted(models: OnnxModels, **versions: int) -> Lineup:
    history = models.history("tiny")
    assert history is not None
    return changed("tiny", history.current, [models.manifest(f"tiny-{kind}", v) for kind, v in versions.items()])


async def promote(models: OnnxModels, **versions: int) -> None:
    history = models.history("tiny")
    assert history is not None
    lineup = wanted(models, **versions)
    await models.switch(History(lineup, previous=history.current), expected=history.current.versions)


async def text_of(family: Family, text: str) -> Any:
    assert family.text is not None
    return (await family.text.encode([text])).vectors[0]
