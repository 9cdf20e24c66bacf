"""`likewise search`: a conditional search from the shell."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from likewise.client.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    Address,
    AsJson,
    GalleryName,
    Timeout,
    connect,
)
from likewise.client.cli.output import print_json, print_table
from likewise.client.errors import InvalidArgument
from likewise.client.filter_text import parse_filter
from likewise.client.hits import Hits
from likewise.client.references import Condition
from likewise.client.requests import Query


class ModeChoice(StrEnum):
    """What a condition's words name."""

    focus = "focus"
    change = "change"


def search(
    gallery: GalleryName,
    image: Annotated[Path | None, typer.Option(help="Reference: an image file.")] = None,
    item_id: Annotated[str | None, typer.Option("--id", help="Reference: a stored item.")] = None,
    text: Annotated[str | None, typer.Option(help="Reference: a description.")] = None,
    vector_file: Annotated[Path | None, typer.Option(help="Reference: a vector, as .npy or a JSON list.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help='What similar means: "in red". Repeatable.')] = None,
    mode: Annotated[
        ModeChoice | None, typer.Option(help="The conditions name what stays (focus) or what is different (change).")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Filter: 'price < 50 and colour in (red, pink) and not sold exists'.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every item.")] = False,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits scored below.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Attribute to show. Repeatable; default all of them.")
    ] = None,
    include_reference: Annotated[bool, typer.Option(help="Keep the stored reference among the hits.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """The items most like a reference, under the conditions."""
    query = Query(k=k, attributes=attribute or True, include_reference=include_reference)
    if image is not None:
        query["image"] = image
    if item_id is not None:
        query["id"] = item_id
    if text is not None:
        query["text"] = text
    if vector_file is not None:
        query["vector"] = _vector(vector_file)
    if condition:
        query["conditions"] = [Condition(words, mode=mode.value if mode else None) for words in condition]
    elif mode:
        raise InvalidArgument("--mode needs a --condition", field="mode")
    if where is not None:
        query["where"] = parse_filter(where)
    if exact:
        query["exact"] = True
    if min_score is not None:
        query["min_score"] = min_score
    with connect(address, timeout) as client:
        hits = client.gallery(gallery).search(**query)
    if as_json:
        print_json(_document(hits))
    else:
        _print_hits(hits)


def _vector(path: Path) -> npt.NDArray[Any]:
    try:
        vector = (
            np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(json.loads(path.read_text()))
        )
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read a vector from {path}: {error}", field="vector_file") from error
    if vector.ndim == 2 and len(vector) == 1:
        vector = vector[0]
    if vector.ndim != 1:
        raise InvalidArgument(f"{path} must hold one vector, got the shape {vector.shape}", field="vector_file")
    return np.asarray(vector)


def _document(hits: Hits) -> dict[str, Any]:
    return {
        "hits": [
            {"id": hit.id, "score": hit.score, "relevance": hit.relevance, "attributes": hit.attributes} for hit in hits
        ],
        "coverage": hits.coverage,
        "timing": hits.timing,
        "plan": hits.plan,
        "models": hits.models,
        "version": hits.version,
        "warnings": hits.warnings,
        "request_id": hits.request_id,
    }


def _print_hits(hits: Hits) -> None:
    names = list(dict.fromkeys(name for row in hits.attributes for name in row))
    rows = [
        (rank, hit.id, f"{hit.score:.4f}", *(hit.attributes.get(name) for name in names))
        for rank, hit in enumerate(hits, 1)
    ]
    print_table(("#", "id", "score", *names), rows)
    timing, coverage = hits.timing, hits.coverage
    typer.echo(
        f"{len(hits)} hits in {timing.total_us / 1000:.1f} ms; {hits.plan.summary}; "
        f"query from {hits.plan.composition}; searched {coverage.items_searched:,} of {coverage.items_total:,} items"
    )
    for lost in coverage.degradations:
        typer.echo(f"not searched: {lost.items:,} items of shards {list(lost.shards)} ({lost.reason})", err=True)
    for notice in hits.warnings:
        typer.echo(f"{notice.code}: {notice.message}", err=True)
