"""What is checked of grpcio before its core is driven, and the life of a server without calls."""

import asyncio
import socket

import pytest

from argosy.core.errors import PluginError
from argosy.serve.rpc import core
from argosy.serve.rpc.core import Core, check_grpcio


def test_the_installed_grpcio_has_all_that_is_used():
    check_grpcio()


@pytest.mark.parametrize("missing", ["CompletionQueue", "ReceiveMessageOperation"])
def test_a_grpcio_that_lacks_a_part_is_named_with_what_to_do(monkeypatch, missing):
    monkeypatch.delattr(core.cygrpc, missing)
    with pytest.raises(PluginError, match=f"with grpcio .*{missing}") as caught:
        check_grpcio()
    assert (caught.value.code, "--grpc-port -1" in caught.value.hint) == ("grpcio_not_usable", True)


def test_a_grpcio_without_its_inner_module_is_named_too(monkeypatch):
    monkeypatch.setattr(core, "cygrpc", None)
    with pytest.raises(PluginError, match="CompletionQueue"):
        check_grpcio()


def test_a_server_starts_and_ends_on_an_event_loop_again_and_again():
    async def life():
        for _ in range(5):
            server = Core([("grpc.so_reuseport", 0)], lambda _: None, asyncio.get_running_loop())
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            assert server.listen(f"127.0.0.1:{port}")
            server.start()
            await server.stop(1.0)
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", port)) != 0

    asyncio.run(life())


def test_a_taken_port_is_told_and_the_server_ends_all_the_same():
    async def life():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = Core([("grpc.so_reuseport", 0)], lambda _: None, asyncio.get_running_loop())
            assert not server.listen(f"127.0.0.1:{taken.getsockname()[1]}")
            await server.stop(0.0)

    asyncio.run(life())
