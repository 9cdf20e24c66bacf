"""Options that several benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

Annotations = Annotated[Path, typer.Option(help="Folder of the official annotation files.", show_default=False)]
ImageFeatures = Annotated[
    Path | None, typer.Option(help="Parquet file of raw image features: columns key and vector.", show_default=False)
]
TextFeatures = Annotated[
    Path | None, typer.Option(help="Parquet file of raw text features: columns text and vector.", show_default=False)
]
Composers = Annotated[
    list[str] | None,
    typer.Option(
        "--composer",
        help="image, text, sum:W (raw features, W the text's weight), unit-sum:W (unit features) or a composer of the "
        "model repository; with --server: served, image or text. Several: later ones are compared with the first.",
        show_default=False,
    ),
]
Repository = Annotated[
    Path | None, typer.Option(help="Model repository; the built-in one by default.", show_default=False)
]
Server = Annotated[
    str | None,
    typer.Option(help="Measure through this server's Search instead: host:port.", show_default=False),
]
Images = Annotated[
    list[Path] | None, typer.Option("--images", help="Folder of the images; may be repeated.", show_default=False)
]
KeptGallery = Annotated[
    str | None,
    typer.Option(
        "--gallery",
        help="Gallery to use, made if it is not there, and kept; without it one is made and deleted.",
        show_default=False,
    ),
]
Encoder = Annotated[str | None, typer.Option(help="Model family that the server encodes with.", show_default=False)]
Modes = Annotated[
    str,
    typer.Option(
        "--mode",
        help="Mode given with each condition: none (raw, as the protocols have it), focus or change.",
        show_default=True,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as one JSON object.")]
Submission = Annotated[
    Path | None,
    typer.Option(help="Folder to write submission files to, for splits whose labels are hidden.", show_default=False),
]
