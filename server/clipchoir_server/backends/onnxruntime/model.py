"""Triton's `onnxruntime` backend for machines without NVIDIA's image: runs `model.onnx` with the onnxruntime package.

Stands in for the C++ backend of the same name, so that one repository serves in both. It honours the config keys that
the repository uses and logs the ones it does not know.
"""

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from clipchoir_parts import in_parts
from clipchoir_session import CPU, PlanError, SessionPlan, plan_session


class TritonPythonModel:
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
        for warning in plan.warnings:
            pb_utils.Logger.log_warn(f"{config['name']}: {warning}")
        self.session = _open(path, plan)
        self.parts = ThreadPoolExecutor(plan.parts_at_a_time) if plan.parts_at_a_time else None
        if self.parts is not None:
            # One pass at a time: Triton 24.10 crashes when two threads send answers.
            self.passes = ThreadPoolExecutor(1)
            self.running: Future[None] = self.passes.submit(lambda: None)
            self.seconds = self._seconds_counter()
        # Here, and not by Triton's model_warmup, whose passes count in the metrics.
        for batch_size in plan.warmup_batch_sizes:
            self._run(_zeros(config["input"], batch_size))

    def execute(self, requests: list[Any]) -> list[Any]:
        if self.parts is None:
            return self._answers(requests)
        # Answered later, while this waits with the next batch: Triton's batcher now and then misses a request that
        # comes while the instance computes, and looks again after half a second.
        senders = [request.get_response_sender() for request in requests]
        wait([self.running])
        self.running = self.passes.submit(self._send_answers, requests, senders)
        return [None] * len(requests)

    def finalize(self) -> None:
        if self.parts is not None:
            self.passes.shutdown()
            self.parts.shutdown()

    def _send_answers(self, requests: list[Any], senders: list[Any]) -> None:
        start = time.perf_counter()
        for sender, answer in zip(senders, self._answers_or_errors(requests), strict=True):
            try:
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:  # nobody waits for it any more; the others' answers follow
                pb_utils.Logger.log_warn(f"{self.name}: {type(error).__name__}: {error}")
        self.seconds.increment(time.perf_counter() - start)

    def _answers_or_errors(self, requests: list[Any]) -> list[Any]:
        try:
            return self._answers(requests)
        except Exception as error:
            message = f"{self.name}: {type(error).__name__}: {error}"
            pb_utils.Logger.log_error(message)
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(message)) for _ in requests]

    def _answers(self, requests: list[Any]) -> list[Any]:
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

    def _seconds_counter(self) -> Any:
        """Triton's own time of computing ends when a request is taken."""
        self.family = pb_utils.MetricFamily(  # its metrics need it alive
            name="clipchoir_pass_seconds_total",
            description="Seconds of the passes of an encoder.",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        return self.family.Metric(labels={"model": self.name})

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
