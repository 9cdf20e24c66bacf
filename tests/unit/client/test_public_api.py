"""What `likewise.client` promises, and what importing it costs."""

import inspect
import subprocess
import sys

import likewise.client
from likewise.client import AsyncClient, AsyncGallery, Client, Gallery, LikewiseError, Query, errors

PUBLIC = [
    *("AsyncClient", "AsyncGallery", "Client", "Export", "Gallery", "Snapshot", "UpsertResult", "VersionToken"),
    *("Condition", "Examples", "F", "Filter", "Query", "RecallEstimate", "Reference", "parse_filter"),
    *("Composition", "Coverage", "Degradation", "Explanation", "Hit", "Hits", "ItemExplanation", "ModelRef", "Notice"),
    *("Plan", "ShardPlan", "Timing"),
    *("GalleryInfo", "GalleryStats", "Health", "IndexSpec", "Item", "Items", "Model", "Promotion", "ShardStats"),
    *("AlreadyExists", "AnswerTooLarge", "BatchError", "Cancelled", "ClientClosed", "DataLoss", "DeadlineExceeded"),
    *("FailedPrecondition", "InvalidArgument", "InvalidType", "LikewiseError", "MessageTooLarge", "NotFound"),
    *("PermissionDenied", "ResourceExhausted", "ServerError", "Unavailable", "Unimplemented", "UpsertFailure"),
]


def test_the_exported_names_are_these() -> None:
    assert sorted(likewise.client.__all__) == sorted(PUBLIC)
    assert [name for name in PUBLIC if not hasattr(likewise.client, name)] == []


def test_importing_it_pulls_nothing_heavy() -> None:
    heavy = [
        "ray",
        "torch",
        "onnxruntime",
        "faiss",
        "lance",
        "pyarrow",
        "typer",
        "rich",
        "PIL",
        "pandas",
        "grpc_health",
    ]
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(name, name=name.partition(".")[0])
sys.meta_path.insert(0, Refuse())
import likewise.client
print(sorted(set(sys.modules) & set({heavy!r})))
from likewise.client.cli import main
main()
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.stdout == "[]\n"
    assert done.returncode == 1
    assert done.stderr == "likewise: the command line needs typer: pip install 'likewise[cpu]'\n"


def _surface(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__init__")
    }


def test_the_two_clients_have_the_same_methods_with_the_same_arguments() -> None:
    assert _surface(Client) == _surface(AsyncClient)
    sync, asynchronous = _surface(Gallery), _surface(AsyncGallery)
    assert sync == asynchronous


def test_every_error_is_in_the_tree_that_is_drawn() -> None:
    classes = [getattr(errors, name) for name in errors.__all__]
    drawn = errors.__doc__ or ""

    for kind in classes:
        if isinstance(kind, type) and issubclass(kind, LikewiseError):
            assert kind.__name__ in drawn


def test_every_argument_of_a_query_is_described() -> None:
    described = Query.__doc__ or ""

    assert [name for name in Query.__annotations__ if f"    {name}: " not in described] == []
