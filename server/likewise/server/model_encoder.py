"""From a model's manifest to the encoder or composer that serves it; what does not fit is refused unopened."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy.typing as npt

from likewise.export.manifest import ManifestError, TensorSpec
from likewise.export.preprocess import preprocessing_of
from likewise.server.batched_graph import Serving
from likewise.server.composer import OnnxComposer
from likewise.server.image_encoder import OnnxImageEncoder
from likewise.server.images import ImageLimits
from likewise.server.model_slot import ModelSlot
from likewise.server.remote import remote_graph
from likewise.server.remote.endpoint_encoder import EndpointImageEncoder, EndpointTextEncoder
from likewise.server.remote.remote_graph import RemoteGraph
from likewise.server.served import GraphCall, Served
from likewise.server.text_encoder import OnnxTextEncoder

Array = npt.NDArray[Any]
ServedModel = OnnxImageEncoder | OnnxTextEncoder | OnnxComposer | EndpointImageEncoder | EndpointTextEncoder

_MODES: Final = frozenset({"unspecified", "focus", "change"})


def make_encoder(slot: ModelSlot, serving: Serving, images: ImageLimits) -> ServedModel:
    """What serves the model of a slot; the model need not be open.

    Args:
        slot: The model.
        serving: How it is served; its own largest batch lowers that of the batcher.
        images: What images are refused.

    Raises:
        ManifestError: If its inputs, outputs or texts are not those of its kind.
    """
    most = min(serving.batch.max_batch, slot.manifest.max_batch)
    endpoint = slot.manifest.endpoint
    serving = replace(serving, batch=replace(serving.batch, max_batch=most, max_running=_running(slot)))
    if endpoint is not None and endpoint.contents == "bytes" and slot.manifest.kind != "composer":
        return _endpoint_encoder(slot)
    match slot.manifest.kind:
        case "image_encoder":
            return _image_encoder(slot, serving, images)
        case "text_encoder":
            return _text_encoder(slot, serving)
        case "composer":
            return _composer(slot, serving)


def served(slot: ModelSlot, encoder: ServedModel) -> Served:
    """A version as the Open Inference Protocol calls it."""
    of = slot.manifest
    return Served(
        kind=slot.kind,
        encoder=encoder,
        dim=of.dim,
        max_batch=of.max_batch,
        graph=GraphCall(of.inputs, of.outputs, _infer(slot, encoder)) if of.endpoint is None else None,
    )


def _running(slot: ModelSlot) -> int:
    """How many batches are in progress at a time."""
    if slot.manifest.endpoint is not None:
        return remote_graph.RUNNING
    # While a GPU has one batch of pictures, the processor decodes the next; by itself it could only be slower at both.
    return 2 if slot.on_gpu and slot.manifest.kind == "image_encoder" else 1


def _infer(slot: ModelSlot, encoder: ServedModel) -> Callable[[Mapping[str, Array]], Awaitable[Mapping[str, Array]]]:
    of = slot.manifest

    async def infer(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        match encoder:
            case OnnxComposer():
                vectors = await encoder.infer(feeds["reference"], feeds["condition"])
            case OnnxImageEncoder() | OnnxTextEncoder():
                vectors = await encoder.infer(feeds[of.inputs[0].name])
            case _:
                raise TypeError(f"{slot.name} has no graph here. This is a bug.")
        return {of.outputs[0].name: vectors}

    return infer


def _image_encoder(slot: ModelSlot, serving: Serving, images: ImageLimits) -> OnnxImageEncoder:
    return OnnxImageEncoder(
        slot.ref,
        slot,
        serving=serving,
        input=_only("input", slot, slot.manifest.inputs).name,
        output=_only("output", slot, slot.manifest.outputs).name,
        dim=slot.manifest.dim,
        preprocessing=preprocessing_of(slot.model),
        limits=images,
    )


def _text_encoder(slot: ModelSlot, serving: Serving) -> OnnxTextEncoder:
    if slot.manifest.tokenizer is None:
        raise ManifestError(f"model {slot.name} has no tokenizer")
    tokens = _only("input", slot, slot.manifest.inputs)
    return OnnxTextEncoder(
        slot.ref,
        slot,
        serving=serving,
        input=tokens.name,
        output=_only("output", slot, slot.manifest.outputs).name,
        dim=slot.manifest.dim,
        dtype=tokens.dtype,
        max_length=slot.manifest.tokenizer.max_length,
        tokenizer=slot.tokenizer,
    )


def _composer(slot: ModelSlot, serving: Serving) -> OnnxComposer:
    names = {spec.name for spec in slot.manifest.inputs}
    # By name only: taking one for the other gives plausible vectors that mean nothing.
    if names != {"reference", "condition"}:
        raise ManifestError(f"the inputs of composer {slot.name} must be reference and condition, got {sorted(names)}")
    missing = _MODES - set(slot.manifest.condition_templates)
    if missing:
        raise ManifestError(f"composer {slot.name} has no condition template for {sorted(missing)}")
    return OnnxComposer(
        slot.ref,
        slot,
        serving=serving,
        reference_input="reference",
        condition_input="condition",
        output=_only("output", slot, slot.manifest.outputs).name,
        dim=slot.manifest.dim,
        templates=slot.manifest.condition_templates,
    )


def _endpoint_encoder(slot: ModelSlot) -> EndpointImageEncoder | EndpointTextEncoder:
    of = slot.manifest
    for what, specs in (("input", of.inputs), ("output", of.outputs)):
        _only(what, slot, specs)

    def opened() -> RemoteGraph:
        graph = slot.graph()
        assert isinstance(graph, RemoteGraph), "a model with an endpoint runs there. This is a bug."
        return graph

    if of.kind == "image_encoder":
        return EndpointImageEncoder(slot.ref, opened, dim=of.dim)
    return EndpointTextEncoder(slot.ref, opened, dim=of.dim)


def _only(what: str, slot: ModelSlot, specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1:
        names = [spec.name for spec in specs]
        raise ManifestError(f"model {slot.name} must have one {what}, got {names}")
    return specs[0]
