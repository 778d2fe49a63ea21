"""TCP ports for the embedded store: free on the loopback interface, and not blocked by a stale socket file."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from larmor.storage.objects.errors import InputError

HOST = "127.0.0.1"
GRPC_OFFSET = 10_000  # every server of SeaweedFS also listens on its port + 10000
# clear of Ray's worker ports (10002-19999), and + 10000 of Linux's outgoing ones (32768-60999)
_RANDOM_PORTS = range(20_000, 22_760)


def check_port(port: int) -> None:
    if not 1024 <= port <= 65_535 - GRPC_OFFSET:
        raise InputError(f"port {port} is out of range; choose one from 1024 to {65_535 - GRPC_OFFSET}")
    for needed in with_grpc([port]):
        if not is_free(needed):
            raise InputError(
                f"port {needed} is taken (the store needs {port} and {port + GRPC_OFFSET}); choose another"
            )


def with_grpc(ports: Sequence[int]) -> set[int]:
    return {*ports, *(port + GRPC_OFFSET for port in ports)}


def is_free(port: int) -> bool:
    """Nobody listens on it, and no socket file of another user's store blocks it (some of those hang the server)."""
    if any(path.lstat().st_uid != os.getuid() for path in socket_files(port)):
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections of the last run do not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def socket_files(port: int) -> list[Path]:
    return list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))  # the folder is fixed in SeaweedFS


def free_ports(wanted: Sequence[int]) -> tuple[int, ...]:
    """Free ports for S3, master, filer, volume and admin: as `wanted` (all five, or S3's alone) if possible."""
    for _ in range(200):
        base = secrets.choice(_RANDOM_PORTS)
        ports = (*wanted, *range(base, base + 5))[:5]
        every = with_grpc(ports)
        if len(every) == 10 and all(map(is_free, every)):
            return ports
        if len(wanted) == 5:  # the last ones: clients may know S3's
            wanted = wanted[:1] if all(map(is_free, with_grpc(wanted[:1]))) else ()
    raise InputError(f"no five free ports from {_RANDOM_PORTS[0]} to {_RANDOM_PORTS[-1]}; stop what takes them")
