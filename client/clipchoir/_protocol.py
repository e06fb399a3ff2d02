"""Requests to the server's models and what their answers say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray

from clipchoir._connection import Connection
from clipchoir._results import Vector
from clipchoir.errors import BadRequestError, ServerFailedError

MODEL = "zero_shot"
SCORING_MODEL = "ensembling"
LABEL_SETS_MODEL = "label_sets"
_SCORES = ("label", "score", "scores", "encoder_scores", "error")


@dataclass(frozen=True)
class Service:
    """What a server says of its model `zero_shot`.

    Attributes:
        encoders: names, in the order of weights.
        default_label_set: of requests that name none.
        version: of the repository.
        max_batch_size: rows of a request at most.
        dims: length of each encoder's embeddings, by encoder.
    """

    encoders: tuple[str, ...]
    default_label_set: str
    version: str
    max_batch_size: int
    dims: dict[str, int]

    @classmethod
    def of(cls, connection: Connection) -> "Service":
        """Ask a server what it serves.

        Raises:
            ClipchoirError: it does not answer, or serves no `zero_shot` of clipchoir's.
        """
        config = connection.config(MODEL)
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        if not parameters.get("encoders"):
            raise BadRequestError(
                f"the model {MODEL} at {connection.url} is not clipchoir's: its config names no encoders"
            )
        encoders = tuple(parameters["encoders"].split(","))
        dims = {output.name.removesuffix("_embedding"): output.dims[-1] for output in config.output}
        return cls(
            encoders,
            parameters.get("default_label_set", ""),
            parameters.get("repository_version", ""),
            config.max_batch_size,
            {encoder: dims[encoder] for encoder in encoders if encoder in dims},
        )


@dataclass(frozen=True)
class Rows:
    """The answer to a batch of N rows; arrays that were not asked for are None."""

    errors: list[str]
    labels: list[str]
    classes: tuple[str, ...]
    score: Vector | None  # (N,)
    scores: Vector | None  # (N, C)
    encoder_scores: Vector | None  # (N, E, C)
    embeddings: Mapping[str, Vector]  # (N, D) by encoder


@dataclass(frozen=True)
class Wanted:
    """Which outputs a request asks for.

    Attributes:
        encoders: of the server.
        scores: of the ensemble and of each encoder.
        embeddings: of each encoder.
        classes: their names, if they are known already: they need not be sent.
    """

    encoders: tuple[str, ...]
    scores: bool = True
    embeddings: bool = False
    classes: tuple[str, ...] = ()

    def outputs(self) -> tuple[str, ...]:
        """Names of the output tensors."""
        scores = (*_SCORES, *(() if self.classes else ("classes",))) if self.scores else ("error",)
        return (*scores, *(f"{encoder}_embedding" for encoder in self.encoders if self.embeddings))

    def read(self, answer: grpcclient.InferResult, rows: int, url: str) -> Rows:
        """The answer to a request of this many rows.

        Raises:
            ServerFailedError: it is not what was asked for.
        """
        try:
            return self._read(answer, rows)
        except (ValueError, TypeError, IndexError, UnicodeDecodeError) as error:
            raise ServerFailedError(f"the answer of {url} makes no sense: {error}") from error

    def _read(self, answer: grpcclient.InferResult, rows: int) -> Rows:
        errors = _strings(answer, "error", rows)
        embeddings = {
            encoder: _floats(answer, f"{encoder}_embedding", (rows, None))
            for encoder in self.encoders
            if self.embeddings
        }
        if not self.scores:
            return Rows(errors, [], (), None, None, None, embeddings)
        classes = self.classes or _classes(answer, rows)
        count = len(classes)
        return Rows(
            errors,
            _strings(answer, "label", rows),
            classes,
            _floats(answer, "score", (rows, 1))[:, 0],
            _floats(answer, "scores", (rows, count)),
            _floats(answer, "encoder_scores", (rows, len(self.encoders), count)),
            embeddings,
        )


def image_input(images: Sequence[bytes]) -> list[grpcclient.InferInput]:
    """Inputs of `zero_shot`: one encoded image per row."""
    tensor = grpcclient.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], np.object_))
    return [tensor]


def embedding_inputs(embeddings: Mapping[str, Vector]) -> list[grpcclient.InferInput]:
    """Inputs of `ensembling`: float32 (N, D) by encoder."""
    tensors = []
    for encoder, values in embeddings.items():
        tensor = grpcclient.InferInput(encoder, list(values.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(values, np.float32))
        tensors.append(tensor)
    return tensors


def text_input(name: str, text: str) -> list[grpcclient.InferInput]:
    """Inputs of a model without batches: one string."""
    tensor = grpcclient.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], np.object_))
    return [tensor]


def _array(answer: grpcclient.InferResult, name: str) -> NDArray[Any]:
    array = answer.as_numpy(name)
    if array is None:
        raise ValueError(f"it has no {name}")
    return array


def _floats(answer: grpcclient.InferResult, name: str, shape: tuple[int | None, ...]) -> Vector:
    array = _array(answer, name)
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.float32 or not fits:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected float32 {shape}")
    return array


def _strings(answer: grpcclient.InferResult, name: str, rows: int) -> list[str]:
    array = _array(answer, name)
    if array.shape != (rows, 1):
        raise ValueError(f"{name} has the shape {array.shape}, expected {(rows, 1)}")
    return [value.decode() for value in array[:, 0]]


def _classes(answer: grpcclient.InferResult, rows: int) -> tuple[str, ...]:
    """Class names of the first row: they are the same in every row, and decoding thousands of strings takes long."""
    response = answer.get_response()
    for index, output in enumerate(response.outputs):
        if output.name == "classes":
            if len(output.shape) != 2 or output.shape[0] != rows:
                raise ValueError(f"classes has the shape {tuple(output.shape)} for {rows} rows")
            return tuple(_first_strings(response.raw_output_contents[index], output.shape[1]))
    raise ValueError("it has no classes")


def _first_strings(raw: bytes, count: int) -> Iterator[str]:
    """Triton's form of strings: 4 bytes of length, little-endian, and UTF-8."""
    start = 0
    for _ in range(count):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            raise ValueError("classes is cut off")
        yield raw[start + 4 : end].decode()
        start = end
