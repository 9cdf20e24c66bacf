"""How a client reaches its server: addresses, message limits, retries, keepalive, deadlines."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from likewise.client.errors import InvalidArgument, MessageTooLarge
from likewise.wire import MAX_MESSAGE_BYTES

DEFAULT_TIMEOUT_S: Final = 60.0
"""Deadline of a call that names none: long enough for a cold model, short enough to notice a dead server."""

# Calls that may be sent again: they read, or they carry a request_id by which the server knows a second delivery.
# Creating, changing and deleting galleries are left out: a repeat of one that went through would report a false error.
_RETRIED: Final[Mapping[str, Sequence[str]]] = {
    "likewise.v1.SearchService": ("Search", "BatchSearch", "SearchVectors", "Compose", "Explain"),
    "likewise.v1.ItemService": ("Upsert", "Get", "Delete", "List", "Count"),
    "likewise.v1.GalleryService": ("Get", "List", "Stats", "ListSnapshots"),
    "likewise.v1.ModelService": ("Get", "List"),
    "grpc.health.v1.Health": ("Check",),
}

# AIP-194: UNAVAILABLE and nothing else; except for CANCELLED, by which a server with too many calls waiting drops one
# that it has not read, since gRPC's core lets it say no more. What this client cancels itself is never sent again.
# 0.1 + 0.2 + 0.4 + 0.8 s of waiting at most: a restarting server is often back by then, and a wrong address is reported
# while the caller still watches. gRPC allows no more than five attempts.
_RETRY_POLICY: Final[Mapping[str, object]] = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}

_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:", "vsock:")

Option = tuple[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """Where a client connects to and how.

    Attributes:
        target: gRPC target.
        timeout_s: Deadline of a call that names none, seconds; infinity for none.
        credentials: TLS; None for plain text, which is meant for loopback and trusted networks.
        metadata: Sent with every call (a token, a tenant).
        max_message_bytes: Largest message sent or accepted.
        options: gRPC channel options; they win over those made here.
    """

    target: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    max_message_bytes: int = MAX_MESSAGE_BYTES
    options: tuple[Option, ...] = field(default=())

    def channel_options(self) -> list[Option]:
        """Options for grpc.insecure_channel and its sisters."""
        made: dict[str, Any] = {
            "grpc.max_send_message_length": self.max_message_bytes,
            "grpc.max_receive_message_length": self.max_message_bytes,
            "grpc.service_config": service_config(),
            "grpc.enable_retries": 1,
            # A request that does not fit this buffer is sent once and never retried; gRPC's own 256 KiB is less than
            # one photograph.
            "grpc.per_rpc_retry_buffer_size": self.max_message_bytes,
            # A dead peer is noticed after 40 s of silence during a call. gRPC sends at most two pings without data in
            # between, so that no server takes them for too many.
            "grpc.keepalive_time_ms": 30_000,
            "grpc.keepalive_timeout_ms": 10_000,
        }
        made.update(self.options)
        return list(made.items())

    def deadline_s(self, timeout: float | None) -> float | None:
        """Seconds for one call: its own timeout, else the client's; None for no deadline.

        Raises:
            InvalidArgument: If the timeout is not positive.
        """
        chosen = self.timeout_s if timeout is None else timeout
        if not chosen > 0:
            raise InvalidArgument(f"timeout must be more than 0 seconds, got {chosen}", field="timeout")
        return None if math.isinf(chosen) else chosen

    def serialise(self, request: Message) -> bytes:
        """Bytes of a request.

        Raises:
            MessageTooLarge: If they are over the limit.
        """
        data = request.SerializeToString()
        if len(data) > self.max_message_bytes:
            raise MessageTooLarge(
                f"the request has {len(data)} bytes, the limit is {self.max_message_bytes}: send less at a time",
                reason="MESSAGE_TOO_LARGE",
                details={"size": str(len(data)), "limit": str(self.max_message_bytes)},
            )
        return data


def make_config(
    address: str | Sequence[str],
    *,
    timeout: float | None,
    credentials: grpc.ChannelCredentials | None,
    metadata: Mapping[str, str | bytes] | None,
    options: Sequence[Option],
    max_message_bytes: int,
) -> ChannelConfig:
    """A client's arguments as a `ChannelConfig`; a timeout of None means no deadline.

    Raises:
        InvalidArgument: If the address or the timeout cannot be used.
    """
    config = ChannelConfig(
        target=target(address),
        timeout_s=math.inf if timeout is None else timeout,
        credentials=credentials,
        metadata=tuple((metadata or {}).items()),
        max_message_bytes=max_message_bytes,
        options=tuple(options),
    )
    config.deadline_s(None)
    return config


def target(address: str | Sequence[str]) -> str:
    """Target of one address ("host:port"), of several, or of a ready target ("dns:///name:port").

    Calls go to several addresses in turn; one that is away is left out until it is back.

    Raises:
        InvalidArgument: If there is none, one has no port, or several are not all of one IP family (a gRPC channel
            takes several addresses by number only; a name that resolves to several does the same).
    """
    addresses = [part.strip() for part in (address.split(",") if isinstance(address, str) else address)]
    if not addresses or not all(addresses):
        raise InvalidArgument(f"an address must not be empty, got {address!r}", field="address")
    if isinstance(address, str) and address.startswith(_SCHEMES):
        return address
    for one in addresses:
        if not one.rpartition(":")[2].isdecimal():
            raise InvalidArgument(f"an address must be host:port, got {one!r}", field="address")
    if len(addresses) == 1:
        return addresses[0]
    families = {_family(one) for one in addresses}
    if len(families) != 1 or "" in families:
        raise InvalidArgument(
            f"several addresses must all be numbers of one IP family, got {addresses}; "
            "for names use one that resolves to all of them, as dns:///name:port",
            field="address",
        )
    return f"{families.pop()}:{','.join(addresses)}"


def service_config() -> str:
    """The retry and load-balancing policy, as gRPC wants it: JSON."""
    names = [{"service": service, "method": method} for service, methods in _RETRIED.items() for method in methods]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
        }
    )


def _family(address: str) -> str:
    host = address.rpartition(":")[0]
    if host.startswith("[") and host.endswith("]"):
        return "ipv6"
    return "ipv4" if host.count(".") == 3 and host.replace(".", "").isdecimal() else ""
