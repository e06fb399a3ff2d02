"""One encoder in one runtime, in a process of its own: the program that runs.py starts.

Takes a JSON object as its argument, then one per line of standard input, and answers each with one line. ONNX Runtime
and PyTorch bring CUDA libraries of their own, which one process should not mix; and what a process holds on the card
is gone when it ends.
"""

import json
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WARM_UP = 3  # batches; the second and third of a CUDA graph are its capture and its first replay
_PEAK_SIZES = {"cuda": (4096, 8192, 16384), "cpu": (256, 512)}
_ASSIGNMENTS = "session.record_ep_graph_assignment_info"

Answer = dict[str, Any]


class Runtime(ABC):
    """An encoder that is loaded."""

    @abstractmethod
    def info(self) -> Answer:
        """What is used."""

    @abstractmethod
    def run(self, way: str, batch: int, count: int) -> None:
        """Encode so many batches, whose pixels are on the device already, and wait for the last one."""

    @abstractmethod
    def embed(self, way: str, batch: int) -> NDArray[np.float32]:
        """The embeddings of the first batch, (N, D)."""

    def peak(self, seconds: float) -> float:
        """FLOP per second of matrix products in the encoder's precision."""
        raise NotImplementedError

    def rate(self, way: str, batch: int, seconds: float) -> float:
        """Images per second."""
        self.run(way, batch, _WARM_UP)
        single = _seconds(lambda: self.run(way, batch, 2)) / 2
        count = max(2, math.ceil(seconds / single))
        return batch * count / _seconds(lambda: self.run(way, batch, count))


class OnnxRuntime(Runtime):
    """`model.onnx` with the options of its Triton config, inputs and outputs in buffers on the device."""

    def __init__(self, settings: Answer, pixels: NDArray[np.uint8]) -> None:
        """
        Args:
            settings: `model`, the version folder; `device`, cuda or cpu; `graphs`, whether to capture CUDA graphs.
            pixels: (N, S, S, 3).
        """
        import onnxruntime
        from google.protobuf import json_format, text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        from clipchoir_server.backend.session import CPU, plan_session

        self._module = onnxruntime
        self._device = settings["device"]
        self._pixels = pixels
        self._graphs = settings["graphs"]
        version = Path(settings["model"])
        file = "config.pbtxt" if self._device == "cpu" else "configs/gpu.pbtxt"
        config = text_format.Parse((version.parent / file).read_text(), ModelConfig())
        plan = plan_session(
            json_format.MessageToDict(config, preserving_proto_field_name=True),
            "CPU" if self._device == "cpu" else "GPU",
            "0",
            onnxruntime.get_available_providers(),
            environment={},
        )
        preferred, provider_options = plan.providers[0]
        if self._graphs:
            provider_options["enable_cuda_graph"] = "1"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, plan.graph_level)
        for key, value in {**plan.entries, _ASSIGNMENTS: "1"}.items():
            options.add_session_config_entry(key, value)
        if preferred != CPU:
            onnxruntime.preload_dlls()
        self._session = onnxruntime.InferenceSession(
            str(version / "model.onnx"), options, providers=[(preferred, provider_options), *plan.providers[1:]]
        )
        if self._session.get_providers()[0] != preferred:  # it goes on with the next one, and merely logs why
            raise RuntimeError(f"onnxruntime cannot start {preferred}; its own message says why")
        self._session.disable_fallback()
        self._output = self._session.get_outputs()[0]
        self._bindings: dict[int, tuple[Any, Any]] = {}

    def info(self) -> Answer:
        return {"onnxruntime": self._module.__version__, "on_cpu": self._on_cpu()}

    def run(self, way: str, batch: int, count: int) -> None:  # noqa: ARG002  there is one way
        binding, _ = self._binding(batch)
        options = self._module.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(batch))  # a graph for each size
        for _ in range(count):
            self._session.run_with_iobinding(binding, options)  # returns when the card is done

    def embed(self, way: str, batch: int) -> NDArray[np.float32]:
        self.run(way, batch, _WARM_UP if self._graphs else 1)
        embeddings: NDArray[np.float32] = self._binding(batch)[1].numpy()
        return embeddings

    def _binding(self, batch: int) -> tuple[Any, Any]:
        if batch not in self._bindings:
            value = self._module.OrtValue
            inputs = value.ortvalue_from_numpy(_rows(self._pixels, batch), self._device, 0)
            shape = [batch, self._output.shape[1]]
            outputs = value.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._session.get_inputs()[0].name, inputs)
            binding.bind_ortvalue_output(self._output.name, outputs)
            self._bindings[batch] = binding, outputs
        return self._bindings[batch]

    def _on_cpu(self) -> dict[str, int] | None:
        """How many nodes of each kind are not on the card, as those of shapes are. None: this version cannot tell."""
        try:
            parts = self._session.get_provider_graph_assignment_info()
        except Exception:  # newer than the oldest onnxruntime that will do, and not worth failing for
            return None
        found: dict[str, int] = {}
        for part in parts:
            for node in part.get_nodes() if part.ep_name == "CPUExecutionProvider" else ():
                found[node.op_type] = found.get(node.op_type, 0) + 1
        return found if self._device != "cpu" else {}


class PyTorch(Runtime):
    """The same served module with the same weights: `eager` and `compiled` (torch.compile)."""

    def __init__(self, settings: Answer, pixels: NDArray[np.uint8]) -> None:
        """
        Args:
            settings: `spec`, the ensemble's file; `encoder`, its name; `device`, cuda or cpu.
            pixels: (N, S, S, 3).
        """
        import torch

        from clipchoir_export.families.registry import open_encoder
        from clipchoir_export.onnx.graph import DTYPES
        from clipchoir_export.onnx.modules import ServedImageEncoder
        from clipchoir_export.spec import load_ensemble

        self._torch = torch
        self._device = settings["device"]
        if self._device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                f"PyTorch {torch.__version__} cannot use the card: it is built for CUDA {torch.version.cuda}, which "
                "the driver must be new enough for"
            )
        path = Path(settings["spec"])
        spec = next(each for each in load_ensemble(path).encoders if each.name == settings["encoder"])
        self._dtype = DTYPES[spec.precision]
        encoder = open_encoder(spec, path, offline=True)
        tower = encoder.image.skeleton()
        state = {name: each.read().to(self._device, self._dtype) for name, each in encoder.image.weights.items()}
        tower.load_state_dict(state, assign=True)
        module = ServedImageEncoder(tower.requires_grad_(False), encoder.architecture, spec.sharpness)
        module = module.to(self._device).eval()
        self._ways: dict[str, Callable[[Any], Any]] = {
            "eager": module,
            "compiled": torch.compile(module, dynamic=False),
        }
        self._pixels = torch.from_numpy(pixels).to(self._device)

    def info(self) -> Answer:
        return {"torch": self._torch.__version__, "torch_cuda": self._torch.version.cuda}

    def run(self, way: str, batch: int, count: int) -> None:
        encode, pixels = self._ways[way], _rows(self._pixels, batch)
        with self._torch.inference_mode():
            for _ in range(count):  # the next batch is handed over while the card still computes
                encode(pixels)
        self._wait()

    def embed(self, way: str, batch: int) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            embeddings: NDArray[np.float32] = self._ways[way](_rows(self._pixels, batch)).cpu().numpy()
        return embeddings

    def peak(self, seconds: float) -> float:
        sizes = _PEAK_SIZES[self._device]
        best = max(self._products(size, seconds / len(sizes)) for size in sizes)
        if self._device == "cuda":
            self._torch.cuda.empty_cache()  # the encoder's memory is looked at later
        return best

    def _products(self, size: int, seconds: float) -> float:
        one, other, result = (self._torch.randn(size, size, device=self._device, dtype=self._dtype) for _ in range(3))

        def multiply(count: int) -> None:
            for _ in range(count):
                self._torch.mm(one, other, out=result)
            self._wait()

        multiply(_WARM_UP)
        single = _seconds(lambda: multiply(2)) / 2
        count = max(2, math.ceil(seconds / single))
        return 2 * size**3 * count / _seconds(lambda: multiply(count))

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


def _rows(pixels: Any, batch: int) -> Any:
    """A batch of so many images, over and over the same ones."""
    times = -(-batch // len(pixels))
    if times == 1:
        return pixels[:batch]
    return (np.concatenate([pixels] * times) if isinstance(pixels, np.ndarray) else pixels.repeat(times, 1, 1, 1))[
        :batch
    ]


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _answer(runtime: Runtime, request: Answer) -> Answer:
    match request["do"]:
        case "info":
            return runtime.info()
        case "rate":
            return {"images_per_second": runtime.rate(request["way"], request["batch"], request["seconds"])}
        case "embed":
            return {"embeddings": runtime.embed(request["way"], request["batch"]).tolist()}
        case "peak":
            return {"flops": runtime.peak(request["seconds"])}
    raise ValueError(f"unknown request {request['do']}")


def main() -> None:
    """Load, then answer until standard input ends."""
    # The libraries print what they like; it goes to stderr, which is the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def attempt(work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except Exception as error:  # whatever it is, the benchmark shows it and goes on without this one
            import traceback

            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    settings = json.loads(sys.argv[1])
    runtime: list[Runtime] = []

    def load() -> Answer:
        kind = PyTorch if settings["runtime"] == "torch" else OnnxRuntime
        runtime.append(kind(settings, np.load(settings["pixels"])))
        return runtime[0].info()

    print(json.dumps(attempt(load)), file=answers, flush=True)
    for line in sys.stdin if runtime else ():
        request = json.loads(line)
        print(json.dumps(attempt(lambda: _answer(runtime[0], request))), file=answers, flush=True)  # noqa: B023
    os._exit(0)  # CUDA's libraries may hang or crash while they are taken apart


if __name__ == "__main__":
    main()
