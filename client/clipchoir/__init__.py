"""Classify images with an ensemble of CLIP encoders served by Triton.

from clipchoir import Client, LabelSet

with Client("localhost:8001") as client:
    pets = LabelSet(classes=["cat", "dog"], templates=["a photo of a {}."])
    for result in client.classify(["a.jpg", "b.jpg"], label_set=pets):
        print(result.source, result.label, result.score)
"""

from importlib.metadata import version as _version

from clipchoir._async_client import AsyncClient
from clipchoir._client import Client
from clipchoir._connection import Tls
from clipchoir._images import Image
from clipchoir._label_set import LabelSet
from clipchoir._options import Options
from clipchoir._protocol import Service
from clipchoir._results import Classification, Embedding
from clipchoir._status import ModelStatus, Status
from clipchoir.errors import (
    BadImageError,
    BadLabelSetFileError,
    BadRequestError,
    ClientClosedError,
    ClipchoirError,
    OverloadedError,
    ServerFailedError,
    TimedOutError,
    UnknownLabelSetError,
    UnreachableError,
)

__all__ = [
    "AsyncClient",
    "BadImageError",
    "BadLabelSetFileError",
    "BadRequestError",
    "Classification",
    "Client",
    "ClientClosedError",
    "ClipchoirError",
    "Embedding",
    "Image",
    "LabelSet",
    "ModelStatus",
    "Options",
    "OverloadedError",
    "ServerFailedError",
    "Service",
    "Status",
    "TimedOutError",
    "Tls",
    "UnknownLabelSetError",
    "UnreachableError",
]

__version__ = _version("clipchoir")
