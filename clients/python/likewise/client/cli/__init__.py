"""The command line: its light half here, the rest loaded when called. Needs typer and rich, which the SDK does not."""

import sys


def main() -> None:
    """Run `likewise`."""
    try:
        from likewise.client.cli.app import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write(f"likewise: the command line needs {missing.name}: pip install 'likewise[cpu]'\n")
        raise SystemExit(1) from None
    app(prog_name="likewise")
