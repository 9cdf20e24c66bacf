"""The command line against a fake server."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from likewise.client.cli.app import app


class Shell:
    """`likewise` against the fake server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, *arguments: object, code: int = 0, typed: str = "") -> Result:
        environment = {"LIKEWISE_ADDRESS": self._address, "COLUMNS": "200"}
        result = CliRunner().invoke(app, [str(one) for one in arguments], env=environment, input=typed)
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: object) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def refused(self, *arguments: object) -> str:
        """What it says when it fails: to stderr, without a traceback."""
        result = self.run(*arguments, code=1)
        assert "Traceback" not in result.stderr
        return result.stderr
