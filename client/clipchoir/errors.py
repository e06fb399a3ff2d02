"""What can go wrong between client and server.

ClipchoirError
├── UnreachableError       no server answers at this address
├── OverloadedError        the server cannot take the request now; try later
├── TimedOutError          no answer before the deadline
├── BadRequestError        the server refuses the request; the message says what would be right
│   └── UnknownLabelSetError
├── ServerFailedError      the server failed while answering, or its answer makes no sense
├── ClientClosedError      the client was closed before the answer came
├── BadImageError          an image has no answer; raised by `raise_for_error` of a result only
└── BadLabelSetFileError   a file of a label set cannot be read
"""

import re

from tritonclient.utils import InferenceServerException

# What gRPC itself says under UNAVAILABLE; the other messages are Triton's.
_NO_CONNECTION = re.compile(
    "failed to connect|connection refused|connection reset|socket closed|dns resolution|name resolution|recvmsg|"
    "broken pipe|goaway|handshake|failed to parse|connection dropped|connection timed out|keepalive|too_many_pings",
    re.IGNORECASE,
)
_IN_ENSEMBLE = re.compile("^in ensemble '[^']*', ")  # Triton puts it before every message of a step


class ClipchoirError(Exception):
    """Base of every error that the client raises."""


class UnreachableError(ClipchoirError):
    """No server answers at this address."""


class OverloadedError(ClipchoirError):
    """The server cannot take the request now."""


class TimedOutError(ClipchoirError):
    """No answer came before the deadline."""


class BadRequestError(ClipchoirError):
    """The server refuses the request."""


class UnknownLabelSetError(BadRequestError):
    """The server has no label set of this name."""


class ServerFailedError(ClipchoirError):
    """The server failed while answering, or its answer makes no sense."""


class ClientClosedError(ClipchoirError):
    """The client was closed before the answer came."""


class BadImageError(ClipchoirError):
    """An image could not be read or decoded."""


class BadLabelSetFileError(ClipchoirError):
    """A file of a label set cannot be read."""


def from_triton(error: InferenceServerException, url: str, timeout: float) -> ClipchoirError:
    """The typed error for what tritonclient raised."""
    status, message = str(error.status()).removeprefix("StatusCode."), _IN_ENSEMBLE.sub("", error.message())
    if "unknown model" in message:  # under several statuses
        return BadRequestError(f"the server at {url}: {message}")
    if status == "UNAVAILABLE":
        if _NO_CONNECTION.search(message):
            return UnreachableError(
                f"no server answers at {url}; start one with: clipchoir-server build/demo ({message.splitlines()[0]})"
            )
        return OverloadedError(f"the server at {url} cannot take the request now: {message}")
    if status == "RESOURCE_EXHAUSTED":
        return BadRequestError(f"the server at {url}: {message}; smaller batches or images would fit")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return BadRequestError(f"the server at {url} refuses access: {message}")
    if status == "DEADLINE_EXCEEDED":
        return TimedOutError(f"the server at {url} did not answer within {timeout:g} s")
    if status == "NOT_FOUND" and "label set" in message:
        return UnknownLabelSetError(message)
    if status in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "OUT_OF_RANGE", "FAILED_PRECONDITION"):
        return BadRequestError(message)
    return ServerFailedError(f"the server at {url} failed ({status}): {message}")
