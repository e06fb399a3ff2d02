"""Triton's `onnxruntime` backend for machines without NVIDIA's image: runs `model.onnx` with the onnxruntime package.

Stands in for the C++ backend of the same name, so that one repository serves in both. It honours the config keys that
the repository uses and logs the ones it does not know.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from clipchoir_server.backend.micro_batches import in_parts
from clipchoir_server.backend.session import CPU, PlanError, SessionPlan, plan_session
from clipchoir_steps.deferred import DeferredBatches
from clipchoir_steps.events import Events
from clipchoir_steps.metrics import Metrics


class OnnxRuntimeStep:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        path = (
            Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
        )
        if not path.is_file():
            raise pb_utils.TritonModelException(f"{path} is missing; build the repository with clipchoir-export build")
        try:
            plan = plan_session(
                config,
                args["model_instance_kind"],
                args["model_instance_device_id"],
                onnxruntime.get_available_providers(),
                os.environ,
            )
        except PlanError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        events = Events(pb_utils, self.name)
        for warning in plan.warnings:
            events.warn("encoder_warning", warning=warning)
        self.session = _open(path, plan)
        self.parts = ThreadPoolExecutor(plan.parts_at_a_time) if plan.parts_at_a_time else None
        # On GPUs, instances would look idle to Triton while they compute.
        self.batches = (
            DeferredBatches(pb_utils, self.name, Metrics(pb_utils), self._answers) if self.parts is not None else None
        )
        # Here, and not by Triton's model_warmup, whose passes count in the metrics.
        for batch_size in plan.warmup_batch_sizes:
            self._run(_zeros(config["input"], batch_size))

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._answers(requests) if self.batches is None else self.batches.take(requests)

    def finalize(self) -> None:
        if self.batches is not None:
            self.batches.close()
        if self.parts is not None:
            self.parts.shutdown()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        batches = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if len(batches) == 1:
            return [self._response(self._run(batches[0]))]
        arrays = self._run({name: np.concatenate([batch[name] for batch in batches]) for name in self.inputs})
        ends = np.cumsum([len(batch[self.inputs[0]]) for batch in batches])[:-1]
        parts = zip(*(np.split(array, ends) for array in arrays), strict=True)
        return [self._response(part) for part in parts]

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.parts is None:
            return list(self.session.run(self.outputs, inputs))
        return in_parts(lambda part: self.session.run(self.outputs, part), inputs, self.parts)

    def _response(self, arrays: Any) -> Any:
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
        )


def _open(path: Path, plan: SessionPlan) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, plan.graph_level)
    options.intra_op_num_threads = plan.intra_op_threads
    options.inter_op_num_threads = plan.inter_op_threads
    for key, value in plan.entries.items():
        options.add_session_config_entry(key, value)
    preferred = plan.providers[0][0]
    if preferred != CPU:
        onnxruntime.preload_dlls()  # CUDA's libraries from their wheels, where the system has none
    session = onnxruntime.InferenceSession(str(path), options, providers=plan.providers)
    if session.get_providers()[0] != preferred:  # ONNX Runtime goes on with the next one, and merely logs why
        raise pb_utils.TritonModelException(
            f"onnxruntime cannot start {preferred}; the reason is in its own message above. It needs a driver, and "
            "the libraries of CUDA and cuDNN (and TensorRT) of the versions that it was built for"
        )
    return session


def _zeros(inputs: list[dict[str, Any]], batch_size: int) -> dict[str, np.ndarray]:
    return {
        tensor["name"]: np.zeros(
            [batch_size, *(int(size) for size in tensor["dims"])], pb_utils.triton_string_to_numpy(tensor["data_type"])
        )
        for tensor in inputs
    }
