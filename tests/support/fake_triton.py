"""A gRPC server that speaks Triton's protocol and fails as it is told: what is hard to provoke on a real one."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

ENCODERS = ("metaclip", "evaclip")
CLASSES = ("a", "b", "c")
DIM = 4

Behaviour = Callable[[Any, Any], Any]
"""(request, gRPC context) -> response; `answer` makes a good one."""


def images_of(request: Any) -> list[bytes]:
    """The encoded images of a request."""
    raw, images, start = request.raw_input_contents[0], [], 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        images.append(raw[start + 4 : end])
        start = end
    return images


def parameters_of(request: Any) -> dict[str, Any]:
    """What a request was sent with."""
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}


def answer(request: Any, _: Any = None, *, rows: int | None = None, without: str = "", classes: Any = CLASSES) -> Any:
    """An answer in which each image has the class of its first byte; an empty image cannot be decoded.

    Args:
        request: the images are in it.
        rows: of the answer, another number than the request's.
        without: an output that is left out.
        classes: in the answer.
    """
    images = images_of(request)[:rows]
    best = np.array([image[0] % len(CLASSES) if image else 0 for image in images], np.int64)
    scores = np.full((len(images), len(CLASSES)), 0.1, np.float32)
    scores[np.arange(len(images)), best] = 0.8
    embedding = np.tile(np.arange(DIM, dtype=np.float32), (len(images), 1))
    outputs = {
        "label": np.array([[CLASSES[index].encode()] for index in best], np.object_).reshape(-1, 1),
        "score": scores.max(axis=1, keepdims=True),
        "scores": scores,
        "classes": np.array([[name.encode() for name in classes]] * len(images), np.object_),
        "encoder_scores": np.stack([scores] * len(ENCODERS), axis=1),
        "error": np.array([[b"" if image else b"the image is empty"] for image in images], np.object_).reshape(-1, 1),
        **{f"{encoder}_embedding": embedding for encoder in ENCODERS},
    }
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    for each in request.outputs:
        if each.name == without:
            continue
        array = outputs[each.name]
        kind = "BYTES" if array.dtype == np.object_ else "FP32"
        response.outputs.add(name=each.name, datatype=kind, shape=array.shape)
        response.raw_output_contents.append(_raw(array))
    return response


def _about_label_sets(classes: tuple[str, ...]) -> Any:
    content = {"classes": classes, "embedding_ids": dict.fromkeys(ENCODERS, "0123")}
    response = service_pb2.ModelInferResponse(model_name="label_sets")
    response.outputs.add(name="answer", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(_raw(np.array([json.dumps(content).encode()], np.object_)))
    return response


def _raw(array: np.ndarray) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel())


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves `zero_shot` with a behaviour that may be changed at any time.

    Attributes:
        behave: answers a request.
        version: of the repository that it says it has.
        classes: of the label set that it says it has.
        requests: all that came.
        metadata: of each.
        in_flight, most_in_flight: requests at a time.
        standing: `serves`, `without` its models, or `away`, as if a proxy answered in its place.
    """

    behave: Behaviour = answer
    version: str = "one"
    classes: tuple[str, ...] = CLASSES
    url: str = ""
    standing: str = "serves"
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002  gRPC's names
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=64)
        config.parameters["encoders"].string_value = ",".join(ENCODERS)
        config.parameters["default_label_set"].string_value = "letters"
        config.parameters["repository_version"].string_value = self.version
        for encoder in ENCODERS:
            config.output.add(name=f"{encoder}_embedding", dims=[DIM])
        return service_pb2.ModelConfigResponse(config=config)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        if self.standing == "away":
            context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
        return service_pb2.ModelReadyResponse(ready=self.standing == "serves")

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name == "label_sets":
            return _about_label_sets(self.classes)
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return self.behave(request, context)
        finally:
            with self._lock:
                self.in_flight -= 1


@contextlib.contextmanager
def fake_triton(
    behave: Behaviour = answer, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> Iterator[FakeTriton]:
    """A running one, on a free port."""
    servicer = FakeTriton(behave)
    server = grpc.server(
        ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    address = f"localhost:{port}"
    chosen = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    servicer.url = f"localhost:{chosen}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(None).wait()


def fails_with(code: grpc.StatusCode, message: str, times: int | None = None) -> Behaviour:
    """Fails so many times, then answers; None: always fails."""
    left = times
    lock = threading.Lock()

    def behave(request: Any, context: Any) -> Any:
        nonlocal left
        with lock:
            fails = left is None or left > 0
            left = left - 1 if left else left
        if fails:
            context.abort(code, message)
        return answer(request)

    return behave
