"""How to reach a server, and one connection to it."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir._options import Announced
from clipchoir._shared_memory import SharedInputs
from clipchoir.errors import ClientClosedError, from_triton

COMPRESSIONS = ("gzip", "deflate")
# A ping after a minute of silence in a request, given up after 20 s. A server takes more than two such pings as a fault
# when they come sooner than its `--grpc-http2-min-recv-ping-interval-without-data` (5 minutes).
_KEEP_ALIVE = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 2),
)
# After a failure to connect: a server that is back is noticed within seconds, not within gRPC's two minutes.
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 5_000))
_ANY_SIZE = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

T = TypeVar("T")


@dataclass(frozen=True)
class Tls:
    """Encryption of the connection. Paths of PEM files.

    Attributes:
        ca: certificates of the authorities to trust; None: the system's.
        certificate: your own, for servers that want one (mutual TLS), with its `key`.
        key: of `certificate`.

    Raises:
        ValueError: a certificate without a key, or the other way round.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("mutual TLS takes both a certificate and its key")

    def arguments(self) -> dict[str, Any]:
        """Of tritonclient.

        Raises:
            OSError: a file cannot be read; it is found out here rather than in the first request.
        """
        names = {"root_certificates": self.ca, "certificate_chain": self.certificate, "private_key": self.key}
        for path in names.values():
            if path is not None:
                Path(path).open("rb").close()
        return {"ssl": True} | {name: None if path is None else os.fspath(path) for name, path in names.items()}


@dataclass(frozen=True)
class Access:
    """What every connection of a client has in common.

    Attributes:
        timeout: seconds that a request may take.
        tls: None: not encrypted.
        headers: sent with every request, for authentication.
        compression: of requests, "gzip" or "deflate"; encoded images hardly get smaller.
        shared_memory: images go to servers of this machine through shared memory.
    """

    timeout: float = 60.0
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: str | None = None
    shared_memory: bool = False

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        if self.compression not in (None, *COMPRESSIONS):
            raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)} or None, got {self.compression!r}")


class Connection:
    """One connection to one server. Safe to use from several threads."""

    def __init__(self, url: str, access: Access) -> None:
        """
        Args:
            url: host:port of its gRPC endpoint.
            access: how to go there.

        Raises:
            ValueError: the URL is not host:port.
            OSError: a file of the TLS settings cannot be read.
        """
        host, colon, port = url.rpartition(":")
        if not colon or not host or not port.isdigit() or "/" in url:
            raise ValueError(f"a URL is host:port of the server's gRPC endpoint, as in localhost:8001; got {url!r}")
        self.url = url
        self._access = access
        self._headers = {name.lower(): value for name, value in access.headers.items()} or None  # as HTTP/2 has them
        self.is_local = host in ("localhost", "[::1]") or host.startswith("127.")
        options = [*_KEEP_ALIVE, *_RECONNECT, *_ANY_SIZE]
        if self.is_local:
            options.append(("grpc.enable_http_proxy", 0))  # no proxy between two programs of one machine
        tls = access.tls.arguments() if access.tls else {}
        self._triton = grpcclient.InferenceServerClient(url, channel_args=options, **tls)
        shared = SharedInputs(self._triton, headers=self._headers, client_timeout=access.timeout)
        self._shared = shared if access.shared_memory and self.is_local else None
        self.announced = Announced()
        self._closed = False

    def close(self) -> None:
        """Requests in flight are cancelled."""
        self._closed = True
        if self._shared:
            self._shared.close()
        self._triton.close()

    @contextlib.contextmanager
    def images(self, images: Sequence[bytes]) -> Iterator[list[grpcclient.InferInput]]:
        """The input of `zero_shot`, one encoded image per row, for one request within the block."""
        with self._shared.lend(images) if self._shared else contextlib.nullcontext() as tensor:
            if tensor is None:
                tensor = grpcclient.InferInput("image", [len(images), 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[image] for image in images], np.object_))
            yield [tensor]

    def infer(
        self, model: str, inputs: Sequence[grpcclient.InferInput], outputs: Sequence[str], parameters: Mapping[str, str]
    ) -> grpcclient.InferResult:
        """One request.

        Args:
            parameters: of the request; `priority` becomes Triton's own.

        Raises:
            ClipchoirError: of the kind that fits.
        """
        others = {name: value for name, value in parameters.items() if name != "priority"}
        return self._call(
            self._triton.infer,
            model,
            inputs,
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
            priority=int(parameters.get("priority", 0)),
            parameters=others or None,
            compression_algorithm=self._access.compression,
        )

    def config(self, model: str) -> Any:
        """A model's config, as Triton's protobuf message."""
        return self._call(self._triton.get_model_config, model).config

    def is_live(self) -> bool:
        return self._call(self._triton.is_server_live)

    def is_ready(self) -> bool:
        return self._call(self._triton.is_server_ready)

    def version(self) -> str:
        """Of the server."""
        return self._call(self._triton.get_server_metadata).version

    def models(self) -> Any:
        """Triton's index of the repository."""
        return self._call(self._triton.get_model_repository_index).models

    def statistics(self) -> Any:
        """Triton's statistics of every model."""
        return self._call(self._triton.get_inference_statistics).model_stats

    def _call(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return method(*arguments, headers=self._headers, client_timeout=self._access.timeout, **options)
        except InferenceServerException as error:
            if self._closed:
                raise ClientClosedError(f"the client of {self.url} was closed") from error
            raise from_triton(error, self.url, self._access.timeout) from error
        except ValueError as error:  # gRPC's word for a channel that was closed meanwhile
            if "closed channel" in str(error):
                raise ClientClosedError(f"the client of {self.url} was closed") from error
            raise
