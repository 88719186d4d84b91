"""The gRPC server of a gateway: its port, its limits against hostile clients, its start and its end."""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from argosy.core.clock import Clock
from argosy.core.errors import Conflict
from argosy.serve.access import Access
from argosy.serve.control import GatewayConfig
from argosy.serve.dataplane import DataPlane
from argosy.serve.rpc.core import Core
from argosy.serve.rpc.service import InferenceService

_FRAMING_BYTES = 64 << 10
"""What a message may have beside tensors of `max_body_bytes`: names and shapes."""
_CALLS_PER_CONNECTION = 1024
_HEAD_BYTES = 16 << 10
_IDLE_S = 600
_PING_AFTER_S, _PING_ANSWER_S = 20, 10
_LEAST_PING_GAP_S = 5
_PING_STRIKES = 5
_LAST_MESSAGES_S = 0.5
_IDENTITY_ONLY = 1  # a set of bits, one for each algorithm of compression; the first is none at all


def options(config: GatewayConfig) -> list[tuple[str, int]]:
    """Return the limits that grpc's core holds."""
    return [
        # Else a second server on a taken port would share its connections in place of failing.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.max_body_bytes + _FRAMING_BYTES),
        ("grpc.max_send_message_length", -1),
        # A message of a few kilobytes may unpack to gigabytes; as over HTTP, bodies come as they are.
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.max_metadata_size", _HEAD_BYTES),
        ("grpc.absolute_max_metadata_size", _HEAD_BYTES),
        ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * config.receive_s)),
        ("grpc.max_connection_idle_ms", 1000 * _IDLE_S),
        # Ours, to find clients that have gone without a word; and how often theirs are suffered.
        ("grpc.keepalive_time_ms", 1000 * _PING_AFTER_S),
        ("grpc.keepalive_timeout_ms", 1000 * _PING_ANSWER_S),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000 * _LEAST_PING_GAP_S),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES),
    ]


class GrpcFront:
    """The gRPC side of one gateway."""

    def __init__(self, plane: DataPlane, access: Access, clock: Clock, config: GatewayConfig) -> None:
        """PluginError: the installed grpcio can't be used."""
        self.service = InferenceService(
            plane,
            access,
            clock,
            max_calls=config.max_connections,
            max_body_bytes=config.max_body_bytes,
            receive_s=config.receive_s,
            timeout_s=config.timeout_s,
        )
        self._config = config
        self._core = Core(options(config), self.service.accept, asyncio.get_running_loop())
        self._certificate: Any = None
        """For the next handshake, when it has changed."""

    async def start(self, port: int) -> None:
        """Listen; Conflict when the port is taken."""
        host = "127.0.0.1" if self._config.host == "localhost" else self._config.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not self._core.listen(address, self._credentials() if self._config.tls_cert else None):
            await self._core.stop(0.0)
            raise Conflict(
                f"gRPC can't be served on {address}: the port is in use by another process",
                hint="choose another port, or 0 for any free one",
                code="port_in_use",
                port=port,
            )
        self._core.start()

    async def stop(self, grace_s: float) -> None:
        """Take no calls any more, and wait for those under way, at most `grace_s`."""
        # Messages that are on their way arrive in a moment; others may never do.
        asyncio.get_running_loop().call_later(_LAST_MESSAGES_S, self.service.end)
        await self._core.stop(grace_s)

    def check(self, now: float) -> None:
        """Give up on clients that take too long. Called a few times a second."""
        self.service.check(now)

    def renew_certificate(self) -> None:
        """Use the certificate's files as they are now, for connections from now on."""
        self._certificate = self._read_certificate()

    def _credentials(self) -> Any:
        def changed() -> Any:
            # Called by a thread of the core before each handshake; None: as before.
            found, self._certificate = self._certificate, None
            return found

        return grpc.dynamic_ssl_server_credentials(self._read_certificate(), changed)

    def _read_certificate(self) -> Any:
        key, chain = Path(self._config.tls_key).read_bytes(), Path(self._config.tls_cert).read_bytes()
        return grpc.ssl_server_certificate_configuration([(key, chain)])
