"""A router by itself: it needs a controller's address and nothing of Ray."""

import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from tests.unit.server.cluster.placement import SPEC, FakeCatalogue, FakePlacement
from tests.unit.server.remote.loopback import Loopback
from tests.unit.server.stubs import connected

from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server.app import Server, StartupError
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.run_router import router
from likewise.server.remote.channels import Endpoint
from likewise.server.settings import Settings
from likewise.v1 import gallery_service_pb2


def _router(controller: str, *, connect_s: float = 10.0) -> Server:
    return router(Settings(port=0, drain_grace_s=0), controller, connect_s=connect_s)


async def test_any_number_of_routers_show_the_galleries_of_one_controller(loopback: Loopback) -> None:
    controller = Controller(FakeCatalogue(), FakePlacement())
    await controller.start()
    await controller.create(SPEC)

    def register(endpoint: Endpoint) -> None:
        pb_grpc.add_ControllerServiceServicer_to_server(ControllerServicer(controller), endpoint.server)

    address = await loopback.endpoint(register)
    async with connected(_router(address)) as one, connected(_router(address)) as other:
        await one.galleries.Delete(gallery_service_pb2.GalleryServiceDeleteRequest(name=SPEC.name))
        left = await other.galleries.List(gallery_service_pb2.GalleryServiceListRequest())
        while left.galleries:  # the other hears of it with its next table
            left = await other.galleries.List(gallery_service_pb2.GalleryServiceListRequest())

    await controller.close(stop_parts=True)


async def test_routers_that_share_a_port_stand_in_for_each_other(loopback: Loopback) -> None:
    controller = Controller(FakeCatalogue(), FakePlacement())
    await controller.start()
    await controller.create(SPEC)

    def register(endpoint: Endpoint) -> None:
        pb_grpc.add_ControllerServiceServicer_to_server(ControllerServicer(controller), endpoint.server)

    address = await loopback.endpoint(register)
    one = router(Settings(port=0, share_port=True, drain_grace_s=0), address)
    await one.start()
    port = int(one.address.rpartition(":")[2])
    with pytest.raises(StartupError, match="Address already in use"):
        await router(Settings(port=port), address).start()
    async with connected(router(Settings(port=port, share_port=True, drain_grace_s=0), address)) as stubs:
        await one.stop(grace_s=0)
        health = await stubs.health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    await controller.close(stop_parts=True)


async def test_a_controller_that_is_not_there_ends_the_start_with_its_address() -> None:
    with pytest.raises(StartupError, match=r"no controller answers at 127\.0\.0\.1:1 for"):
        await _router("127.0.0.1:1", connect_s=0.2).start()


def test_a_router_never_imports_ray(tmp_path: Path) -> None:
    code = (
        "import sys, likewise.cli.serve, likewise.cli.cluster, likewise.server.cluster.run_router as r\n"
        "from likewise.server.settings import Settings\n"
        "import asyncio\n"
        "async def main(): r.router(Settings(), '127.0.0.1:1')\n"
        "asyncio.run(main())\n"
        "assert 'ray' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--role", "router"], "--role router needs --controller HOST:PORT", id="no controller"),
        pytest.param(["--controller", "h:1"], "--controller needs --role router", id="no role"),
        pytest.param(["--role", "router", "--controller", "here"], "must be HOST:PORT, got 'here'", id="no port"),
        pytest.param(["--role", "router", "--controller", "h:1", "--ray", "local"], "give one", id="both"),
        pytest.param(["--share-port"], "--share-port needs --role router", id="shared store"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from likewise.cli import serve

    done = CliRunner().invoke(serve.app, options)

    assert done.exit_code == serve.WRONG_OPTIONS
    assert message in done.output
