"""Time until a restarted server answers, and its memory: see `--help`."""

import typer

from likewise.cli.bench import restart

if __name__ == "__main__":
    typer.run(restart)
