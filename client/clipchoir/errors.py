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
from enum import Enum, auto

from tritonclient.utils import InferenceServerException

_IN_ENSEMBLE = re.compile("^in ensemble '[^']*', ")  # Triton puts it before every message of a step; nobody needs it


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


class Standing(Enum):
    """What a server says of itself after a request has failed."""

    AWAY = auto()  # nothing: no server answers
    NO_SUCH_MODEL = auto()  # it does not serve the model
    SERVED = auto()  # it serves the model


def from_triton(
    error: InferenceServerException, url: str, timeout: float, standing: Standing = Standing.SERVED
) -> ClipchoirError:
    """The typed error for what tritonclient raised, by its status and what the status leaves open.

    Args:
        error: of tritonclient.
        url: of the server.
        timeout: seconds that the answer might take.
        standing: of the server, where the status is UNAVAILABLE or NOT_FOUND.
    """
    status, message = str(error.status()).removeprefix("StatusCode."), _IN_ENSEMBLE.sub("", error.message())
    if status in ("UNAVAILABLE", "NOT_FOUND") and standing is not Standing.SERVED:
        if standing is Standing.NO_SUCH_MODEL:
            return BadRequestError(f"the server at {url}: {message}")
        return UnreachableError(
            f"no server answers at {url}; start one with: clipchoir-server build/demo ({message.splitlines()[0]})"
        )
    match status:
        case "UNAVAILABLE":
            return OverloadedError(f"the server at {url} cannot take the request now: {message}")
        case "NOT_FOUND":  # of what a request names, only label sets can be unknown
            return UnknownLabelSetError(message)
        case "RESOURCE_EXHAUSTED":
            return BadRequestError(f"the server at {url}: {message}; smaller batches or images would fit")
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return BadRequestError(f"the server at {url} refuses access: {message}")
        case "DEADLINE_EXCEEDED":
            return TimedOutError(f"the server at {url} did not answer within {timeout:g} s")
        case "INVALID_ARGUMENT" | "UNIMPLEMENTED" | "OUT_OF_RANGE" | "FAILED_PRECONDITION":
            return BadRequestError(message)
    return ServerFailedError(f"the server at {url} failed ({status}): {message}")
