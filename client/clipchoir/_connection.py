"""How to reach a server, and one connection to it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir._options import SentLabelSets
from clipchoir.errors import ClientClosedError, Standing, from_triton

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
_OPEN = ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND")  # statuses that say too little
_PROBE = 5.0  # seconds for finding out more
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
        """Keyword arguments of tritonclient.

        Raises:
            OSError: a file cannot be read; it is found out here rather than in the first request.
        """
        names = {"root_certificates": self.ca, "certificate_chain": self.certificate, "private_key": self.key}
        for path in names.values():
            if path is not None:
                Path(path).open("rb").close()
        return {"ssl": True} | {name: None if path is None else os.fspath(path) for name, path in names.items()}


@dataclass(frozen=True)
class ConnectionOptions:
    """Options of a client's connections; the one place that has their defaults.

    Attributes:
        timeout: seconds that an answer may take, each time that a request is sent.
        patience: seconds that a request is tried again for when no server takes it (none answers, or all reject it
            because they have too much to do); 0: never. The very first request is not tried again.
        concurrency: requests in flight at each server. Less for a while after a server has rejected some.
        tls: encrypt; `Tls(...)` names certificates, True takes the system's.
        headers: sent with every request: {"authorization": "Bearer ..."}.
        compression: of requests, "gzip" or "deflate"; encoded images hardly get smaller.

    Raises:
        ValueError: a value is out of its range.
    """

    timeout: float = 60.0
    patience: float = 30.0
    concurrency: int = 4
    tls: Tls | bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: str | None = None

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0 seconds, got {self.patience}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.compression not in (None, *COMPRESSIONS):
            raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)} or None, got {self.compression!r}")


class ConnectionKeywords(TypedDict, total=False):
    """Keywords of a client: see `ConnectionOptions`."""

    timeout: float
    patience: float
    concurrency: int
    tls: Tls | bool
    headers: Mapping[str, str] | None
    compression: str | None


class Connection:
    """One connection to one server. Safe to use from several threads."""

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        """
        Args:
            url: host:port of its gRPC endpoint.
            options: of all connections of the client.

        Raises:
            ValueError: the URL is not host:port.
            OSError: a file of the TLS settings cannot be read.
        """
        host, colon, port = url.rpartition(":")
        if not colon or not host or not port.isdigit() or "/" in url:
            raise ValueError(f"a URL is host:port of the server's gRPC endpoint, as in localhost:8001; got {url!r}")
        self.url = url
        self._options = options
        self._headers = {name.lower(): value for name, value in (options.headers or {}).items()} or None  # HTTP/2's
        channel = [*_KEEP_ALIVE, *_RECONNECT, *_ANY_SIZE]
        if host in ("localhost", "[::1]") or host.startswith("127."):
            channel.append(("grpc.enable_http_proxy", 0))  # no proxy between two programs of one machine
        tls = Tls() if options.tls is True else options.tls
        self._triton = grpcclient.InferenceServerClient(url, channel_args=channel, **(tls.arguments() if tls else {}))
        self.sent_label_sets = SentLabelSets()
        self._closed = False

    def close(self) -> None:
        """Requests in flight are cancelled."""
        self._closed = True
        self._triton.close()

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
            compression_algorithm=self._options.compression,
            of_model=model,
        )

    def config(self, model: str) -> Any:
        """A model's config, as Triton's protobuf message."""
        return self._call(self._triton.get_model_config, model, of_model=model).config

    def is_ready(self) -> bool:
        """Whether the server takes requests."""
        return self._call(self._triton.is_server_ready)

    def version(self) -> str:
        """Version of the server."""
        return self._call(self._triton.get_server_metadata).version

    def models(self) -> Any:
        """Triton's index of the repository."""
        return self._call(self._triton.get_model_repository_index).models

    def statistics(self) -> Any:
        """Triton's statistics of every model."""
        return self._call(self._triton.get_inference_statistics).model_stats

    def _call(self, method: Callable[..., T], *arguments: Any, of_model: str | None = None, **options: Any) -> T:
        try:
            return method(*arguments, headers=self._headers, client_timeout=self._options.timeout, **options)
        except InferenceServerException as error:
            standing = Standing.SERVED
            if str(error.status()) in _OPEN and not self._closed:
                standing = self._standing(of_model)
            if self._closed:  # it may have been meanwhile
                raise ClientClosedError(f"the client of {self.url} was closed") from error
            raise from_triton(error, self.url, self._options.timeout, standing) from error
        except ValueError as error:
            if self._closed:  # gRPC's word for a channel that was closed meanwhile
                raise ClientClosedError(f"the client of {self.url} was closed") from error
            raise

    def _standing(self, model: str | None) -> Standing:
        """What the status of a failure leaves open, asked of the server."""
        seconds = min(_PROBE, self._options.timeout)
        try:
            if model is None:
                self._triton.is_server_live(headers=self._headers, client_timeout=seconds)
                return Standing.SERVED
            served = self._triton.is_model_ready(model, headers=self._headers, client_timeout=seconds)
        except InferenceServerException as error:
            away = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
            return Standing.AWAY if str(error.status()) in away else Standing.SERVED
        except ValueError:  # closed meanwhile
            return Standing.AWAY
        return Standing.SERVED if served else Standing.NO_SUCH_MODEL
