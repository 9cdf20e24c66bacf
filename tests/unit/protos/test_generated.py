"""The committed generated code is what the protos say, and the protos keep to the rules of the contract."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROTOS = ROOT / "protos"
COMMITTED = ROOT / "clients" / "python"


def _generated(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*_pb2*.py*") if path.suffix != ".pyc"}


def test_committed_code_is_fresh(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}

    subprocess.run([sys.executable, PROTOS / "generate.py", tmp_path], check=True, env=environment)

    fresh, committed = _generated(tmp_path), _generated(COMMITTED)
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == []


@pytest.mark.parametrize("path", sorted((PROTOS / "likewise" / "v1").glob("*.proto")), ids=lambda path: path.name)
def test_every_public_field_and_rpc_is_commented(path: Path) -> None:
    # A field may leave its comment out where its name and the message's comment say all there is to say.
    lines = path.read_text().splitlines()

    bare = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if re.match(r"\s*(rpc|message|enum|service) ", line) and not lines[number - 2].strip().startswith("//")
    ]

    assert bare == []


@pytest.mark.parametrize("path", sorted(PROTOS.rglob("*.proto")), ids=lambda path: path.name)
def test_package_is_the_directory_and_enums_start_unspecified(path: Path) -> None:
    text = path.read_text()

    package = re.search(r"^package (\S+);", text, re.MULTILINE)

    assert package is not None
    assert package[1].replace(".", "/") == str(path.parent.relative_to(PROTOS))
    for name, first in re.findall(r"^enum (\w+) \{\s*(\w+) = 0;", text, re.MULTILINE):
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        assert first == f"{prefix}_UNSPECIFIED" or first == "DTYPE_UNSPECIFIED"
