"""Triton's repository calls in our terms: what is there, what can be called, and which version a call means."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, NotFound
from likewise.v1 import model_service_pb2

_READY: Final = model_service_pb2.MODEL_STATE_READY

_STATES: Final = {
    model_service_pb2.MODEL_STATE_READY: "READY",
    model_service_pb2.MODEL_STATE_LOADING: "LOADING",
    model_service_pb2.MODEL_STATE_DRAINING: "UNLOADING",
}
"""Triton's words for the states; everything else is UNAVAILABLE, with the reason."""

_MAX_VERSION_DIGITS: Final = 18


def version_number(text: str) -> int | None:
    """The version that a request names; None for an empty string, the server's choice.

    Raises:
        InvalidRequest: If it is no positive whole number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_VERSION_DIGITS):
        raise InvalidRequest(f"a model version must be a whole number from 1, got {text[:40]!r}", field="model_version")
    return int(text)


def ready(models: Sequence[model_service_pb2.Model]) -> bool:
    """Whether every model in use can be called.

    A version that is not in use may be absent, load or fail without harm. Where nothing says which version is in use, a
    model that none is ready of counts as in use as soon as somebody tried to load it.
    """
    versions: dict[str, list[model_service_pb2.Model]] = defaultdict(list)
    for model in models:
        versions[model.name].append(model)
    return all(_callable(those) for those in versions.values())


def index(models: Sequence[model_service_pb2.Model], *, ready: bool) -> pb.RepositoryIndexResponse:
    """Every version with Triton's word for its state; with `ready` only those that can be called."""
    response = pb.RepositoryIndexResponse()
    for model in models:
        if ready and model.state != _READY:
            continue
        reason = "not loaded" if model.state == model_service_pb2.MODEL_STATE_AVAILABLE else model.reason
        response.models.add(
            name=model.name,
            version=str(model.version),
            state=_STATES.get(model.state, "UNAVAILABLE"),
            reason=reason,
        )
    return response


def check_name(repository: str) -> None:
    """Refuse a repository by name: models are known by theirs alone.

    Raises:
        NotFound: If one is named.
    """
    if repository:
        raise NotFound(
            f"no repository {repository[:80]!r}: models are found by their own names, leave repository_name empty",
            reason="REPOSITORY_NOT_FOUND",
            field="repository_name",
        )


def version_to_load(parameters: Mapping[str, pb.ModelRepositoryParameter]) -> int | None:
    """The version that a load asks for in Triton's way; None for the newest.

    Triton names versions in the parameter "config", a model configuration as JSON:
    ``{"version_policy": {"specific": {"versions": [2]}}}``. Nothing else of a configuration can be changed here, and
    files come from the repository alone.

    Raises:
        InvalidRequest: If anything else is asked for.
    """
    if unknown := sorted(set(parameters) - {"config"}):
        raise InvalidRequest(
            f"loading takes the parameter 'config' alone, got {unknown[0][:80]!r}: put files into the model repository",
            field="parameters",
        )
    if "config" not in parameters:
        return None
    text = parameters["config"].string_param
    try:
        versions = _specific(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the parameter 'config' must be JSON: {error}", field="parameters") from error
    if versions is None:
        raise InvalidRequest(
            'the parameter \'config\' may say {"version_policy": {"specific": {"versions": [n]}}} with one version and '
            f"nothing else, got {text[:200]!r}",
            field="parameters",
        )
    return versions


def versions_to_unload(versions: Sequence[model_service_pb2.Model]) -> list[int]:
    """What unloading a model frees: its loaded versions that are not in use, else the one in use, to be refused."""
    loaded = [model for model in versions if model.state == _READY]
    return [model.version for model in loaded if not model.in_use] or [model.version for model in loaded]


def _callable(versions: Sequence[model_service_pb2.Model]) -> bool:
    in_use = [model for model in versions if model.in_use]
    if in_use:
        return all(model.state == _READY for model in in_use)
    states = {model.state for model in versions}
    tried = states & {model_service_pb2.MODEL_STATE_LOADING, model_service_pb2.MODEL_STATE_FAILED}
    return _READY in states or not tried


def _specific(config: Any) -> int | None:
    match config:
        case {"version_policy": {"specific": {"versions": [int(number)], **rest}, **more}, **others} if (
            not isinstance(number, bool) and number >= 1 and not rest and not more and set(others) <= {"name"}
        ):
            return number
        case _:
            return None
