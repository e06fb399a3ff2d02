"""Classify images with an ensemble of CLIP encoders served by Triton.

from clipchoir import Client

with Client("localhost:8001") as client:
    for result in client.classify(["a.jpg", "b.jpg"]):
        print(result.source, result.label, result.score)
"""

from clipchoir._client import Client
from clipchoir._results import Classification
from clipchoir.errors import (
    BadRequestError,
    ClipchoirError,
    OverloadedError,
    ServerFailedError,
    TimedOutError,
    UnknownLabelSetError,
    UnreachableError,
)

__all__ = [
    "BadRequestError",
    "Classification",
    "Client",
    "ClipchoirError",
    "OverloadedError",
    "ServerFailedError",
    "TimedOutError",
    "UnknownLabelSetError",
    "UnreachableError",
]
