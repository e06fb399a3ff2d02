"""Where a server listens."""

import socket
from contextlib import ExitStack
from dataclasses import dataclass

from clipchoir_server.errors import ServerError


@dataclass(frozen=True)
class Address:
    """Host and ports of a server."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int

    @classmethod
    def choose(
        cls, host: str = "127.0.0.1", grpc_port: int = 0, http_port: int = 0, metrics_port: int = 0
    ) -> "Address":
        """An address whose ports were free a moment ago; port 0 stands for any.

        Raises:
            ServerError: a port is taken, or the host is not an address of this machine.
        """
        return cls(host, *_free_ports(host, (grpc_port, http_port, metrics_port)))

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"{self.host}:{self.http_port}"

    @property
    def metrics(self) -> str:
        return f"{self.host}:{self.metrics_port}"


def _free_ports(host: str, ports: tuple[int, ...]) -> list[int]:
    if ":" in host:
        raise ServerError(f"cannot listen on {host}: the embedded Triton takes IPv4 addresses and host names only")
    with ExitStack() as stack:
        found = []
        for port in ports:
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
            found.append(probe.getsockname()[1])
        if len(set(found)) < len(found):
            raise ServerError(f"gRPC, HTTP and metrics need three different ports, got {', '.join(map(str, found))}")
        return found
