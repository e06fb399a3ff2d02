"""Triton's `onnxruntime` backend for machines without NVIDIA's image: runs `model.onnx` with the onnxruntime package.

Stands in for the C++ backend of the same name, so that one repository serves in both. It honours the config keys that
the repository uses and logs the ones it does not know.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

_LEVELS = {
    -2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        if args["model_instance_kind"] == "GPU":
            raise pb_utils.TritonModelException("this onnxruntime backend runs on the CPU; use KIND_CPU or no kind")
        path = (
            Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
        )
        if not path.is_file():
            raise pb_utils.TritonModelException(f"{path} is missing; build the repository with clipchoir-export build")
        self.session = onnxruntime.InferenceSession(
            str(path), _session_options(config), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        batches = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if len(batches) == 1:
            arrays = self.session.run(self.outputs, batches[0])
            return [self._response(arrays)]
        joined = {name: np.concatenate([batch[name] for batch in batches]) for name in self.inputs}
        arrays = self.session.run(self.outputs, joined)
        ends = np.cumsum([len(batch[self.inputs[0]]) for batch in batches])[:-1]
        parts = zip(*(np.split(array, ends) for array in arrays), strict=True)
        return [self._response(part) for part in parts]

    def _response(self, arrays: Any) -> Any:
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
        )


def _session_options(config: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    optimization = config.get("optimization", {})
    level = int(optimization.get("graph", {}).get("level", 0))
    if level not in _LEVELS:
        raise pb_utils.TritonModelException(f"optimization.graph.level is {level}; it must be one of {[*_LEVELS]}")
    options.graph_optimization_level = _LEVELS[level]
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options.intra_op_num_threads = int(parameters.pop("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.pop("inter_op_thread_count", 0))
    ignored = [f"parameters.{key}" for key in parameters]
    ignored += [f"optimization.{key}" for key in ("execution_accelerators", "cuda") if key in optimization]
    for key in ignored:
        pb_utils.Logger.log_warn(f"{config['name']}: this onnxruntime backend ignores the config key {key}")
    return options
