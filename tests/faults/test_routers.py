"""Routers in processes of their own: their callers notice neither that one ends nor a new controller."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.faults.attack import Callers, Cluster, kill, listener, vectors, wait_until
from tests.integration.processes import ServerProcess
from typer.testing import CliRunner

from likewise.cli import cluster as command
from likewise.client import Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def routers(cluster: Cluster, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            router = ServerProcess(tmp_path / "unused", ["--role", "router", "--controller", cluster.controller])
            router.start()
            stack.callback(router.kill)
            found.append(router)
        yield found


def _status(cluster: Cluster) -> dict[str, list[dict[str, object]]]:
    done = CliRunner().invoke(command.app, ["status", "--controller", cluster.controller, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return found


def test_a_caller_of_two_routers_goes_on_when_one_is_killed_and_when_the_controller_is(
    cluster: Cluster, routers: list[ServerProcess], tmp_path: Path
) -> None:
    one, other = routers
    for router in routers:
        assert "_raylet" not in Path(f"/proc/{listener(router.address)}/maps").read_text()
    assert not (tmp_path / "unused").exists()

    with Client(f"{one.address},{other.address}") as client:
        gallery = client.create_gallery("routed", dim=16)
        wait_until(lambda: _known(other, "routed") and _known(one, "routed"))
        gallery.upsert([f"i{row}" for row in range(100)], vectors=vectors(100))
        gallery.count()  # the shard has them then, for callers without this client's token too
        with Callers(client, "routed").calling() as callers:
            callers.wait_for(20)
            assert len(_status(cluster)["routers"]) >= 2
            one.kill()
            callers.wait_for(40)
            kill(cluster.controller)
            callers.wait_for(40)
            # Back at the same port, where the router that is left finds it by itself.
            wait_until(lambda: _changes(client))
        (found,) = [g for g in _status(cluster)["galleries"] if g["gallery"]["spec"]["name"] == "routed"]  # type: ignore[index]
        client.delete_gallery("routed")

    assert callers.failures == []
    assert callers.answered >= 100
    shards: list[dict[str, list[dict[str, str]]]] = found["shards"]  # type: ignore[assignment]
    assert [part["state"] for shard in shards for part in shard["replicas"]] == ["PART_STATE_SERVING"]


def _known(router: ServerProcess, name: str) -> bool:
    with Client(router.address) as client:
        return name in [gallery.name for gallery in client.galleries()]


def _changes(client: Client) -> bool:
    """A change, which only the controller makes, goes through: also where an earlier one had half of it done."""
    client.create_gallery("after", dim=4, exist_ok=True)
    client.delete_gallery("after")
    return True
