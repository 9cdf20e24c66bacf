"""Who may know whom: what the import contracts cannot say."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("cli", "server", "shards", "export", "clients/python")

# Each heavy dependency has one or two doors; "export" means anywhere below export/.
DOORS = {
    # The benchmark's limits are these libraries themselves.
    "faiss": {
        "shards/likewise/shards/index.py",
        "shards/likewise/shards/faiss_threads.py",
        "cli/likewise/cli/benchmark/limit_faiss.py",
    },
    "lance": {
        "shards/likewise/shards/store.py",
        "shards/likewise/shards/gallery_store.py",
        # Written by bulk ingest's workers, beside the store.
        "shards/likewise/shards/bulk.py",
        "cli/likewise/cli/benchmark/limit_lance.py",
    },
    "onnxruntime": {"server/likewise/server/session.py", "export/likewise/export/runtime.py"},
    "ray": {"server/likewise/server/cluster"},
    "torch": {"export/likewise/export"},
    "prometheus_client": {f"server/likewise/server/{name}.py" for name in ("metrics", "histograms")},
    "typer": {"cli/likewise/cli", "clients/python/likewise/client/cli"},
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _sources() -> Iterator[tuple[str, Path]]:
    for root in ROOTS:
        for path in (ROOT / root / "likewise").rglob("*.py"):
            yield str(path.relative_to(ROOT)), path


def test_each_heavy_dependency_has_its_doors_and_no_others() -> None:
    found = defaultdict(set)
    for name, path in _sources():
        for module in _imports(path):
            found[module.split(".")[0]].add(name)

    strangers = {
        library: sorted(name for name in found[library] if not any(name.startswith(door) for door in doors))
        for library, doors in DOORS.items()
    }

    assert {library: names for library, names in strangers.items() if names} == {}


def test_the_namespace_has_no_init() -> None:
    assert [str(ROOT / root) for root in ROOTS if (ROOT / root / "likewise" / "__init__.py").exists()] == []


def test_the_server_sees_only_the_light_part_of_export() -> None:
    light = ("manifest", "model_repository", "preprocess", "tokenizer")
    allowed = {f"likewise.export.{name}" for name in light}

    seen = {
        module
        for name, path in _sources()
        if name.startswith("server/")
        for module in _imports(path)
        if module.startswith("likewise.export")
    }

    assert seen <= allowed


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "manager.py", "base.py", "misc.py"}

    assert [name for name, path in _sources() if path.name in drawers] == []


def test_the_sdk_imports_with_its_three_dependencies_alone() -> None:
    heavy = ["ray", "torch", "onnxruntime", "faiss", "lance", "pyarrow", "typer", "rich", "PIL", "prometheus_client"]
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import likewise.client
from likewise.client import AsyncClient, Client, F
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0
