"""What an encoder's Triton config asks of ONNX Runtime. Imports neither of the two, so that it can be tested alone.

Keys and values are those of NVIDIA's C++ backend, except for `warmup_batch_sizes`, which is this backend's own.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

SESSION_THREADS = "CLIPCHOIR_SESSION_THREADS"
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
Options = dict[str, str]
Provider = tuple[str, Options]

_GRAPH_LEVELS = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
_SESSION_ENTRIES = ("session.use_device_allocator_for_initializers",)
# Every encoder has a process and a session of its own: threads that wait for work by spinning take the cores from the
# other encoder.
_NO_SPINNING = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
# Options of the CUDA provider that may stand among a model's parameters; some have numbers there for names.
_CUDA_PARAMETERS: dict[str, Options] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": {},
    "do_copy_in_default_stream": {},
}
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_PRECISIONS: dict[str, Options] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}


class PlanError(Exception):
    """The config asks for something that there is not, or not here."""


@dataclass(frozen=True)
class SessionPlan:
    """How to open a session.

    Attributes:
        graph_level: name of a member of `onnxruntime.GraphOptimizationLevel`.
        intra_op_threads: 0 leaves it to ONNX Runtime.
        inter_op_threads: likewise.
        entries: for `SessionOptions.add_session_config_entry`.
        providers: the preferred one first.
        parts_at_a_time: a batch is run in parts of a few rows, so many at a time; 0: as a whole.
        warmup_batch_sizes: of the passes to make before the model is ready.
        warnings: what will not be as the config has it.
    """

    graph_level: str
    intra_op_threads: int
    inter_op_threads: int
    entries: Options
    providers: list[Provider]
    parts_at_a_time: int
    warmup_batch_sizes: list[int]
    warnings: list[str]


def plan_session(
    config: Mapping[str, Any], kind: str, device: str, available: Collection[str], environment: Mapping[str, str]
) -> SessionPlan:
    """Read a model's config.

    Args:
        config: as Triton hands it to a Python backend.
        kind: of the model's instance: `CPU` or `GPU`.
        device: the GPU's number.
        available: providers of the ONNX Runtime that is installed.
        environment: of the process; `CLIPCHOIR_SESSION_THREADS` there is the number of threads on the CPU where the
            config has none.

    Raises:
        PlanError: a value is none that the C++ backend knows, or a provider is missing.
    """
    optimization = config.get("optimization", {})
    level = int(optimization.get("graph", {}).get("level", 0))
    if level not in _GRAPH_LEVELS:
        raise PlanError(f"optimization.graph.level is {level}; it must be one of {[*_GRAPH_LEVELS]}")
    # What is understood is taken out of these two; what is left is ignored.
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    accelerators = dict(optimization.get("execution_accelerators", {}))
    threads = {name: int(parameters.pop(f"{name}_op_thread_count", 0)) for name in ("intra", "inter")}
    entries = {key: parameters.pop(key) for key in _SESSION_ENTRIES if key in parameters}
    warmup = [int(size) for size in parameters.pop("warmup_batch_sizes", "").split(",") if size]
    providers: list[Provider] = []
    warnings = []
    if kind == "GPU" and CUDA not in available and not accelerators.get("gpu_execution_accelerator"):
        # The config leaves the place to Triton, which has found a GPU.
        warnings.append(f"runs on the CPU and not on GPU {device}: the onnxruntime installed is the one for CPUs")
    elif kind == "GPU":
        providers = _gpu_providers(accelerators.pop("gpu_execution_accelerator", []), parameters, device)
        _check_available(providers, device, available)
    if not providers:
        entries = _NO_SPINNING | entries
        threads["intra"] = threads["intra"] or _whole_number(environment, SESSION_THREADS)
    ignored = [f"parameters.{key}" for key in parameters]
    ignored += [f"optimization.execution_accelerators.{key}" for key in accelerators]
    ignored += ["optimization.cuda"] if "cuda" in optimization else []
    warnings += [f"this onnxruntime backend ignores the config key {key}" for key in ignored]
    return SessionPlan(
        graph_level=_GRAPH_LEVELS[level],
        intra_op_threads=threads["intra"],
        inter_op_threads=threads["inter"],
        entries=entries,
        providers=[*providers, (CPU, {})],
        parts_at_a_time=0 if providers else len(os.sched_getaffinity(0)),
        warmup_batch_sizes=warmup,
        warnings=warnings,
    )


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "0")
    if not value.isdecimal():
        raise PlanError(f'{name} in the environment must be a whole number, at least 0; got "{value}"')
    return int(value)


def _gpu_providers(accelerators: list[dict[str, Any]], parameters: Options, device: str) -> list[Provider]:
    """The providers of a GPU; takes the parameters that are theirs out of the model's."""
    wanted = {each["name"]: each.get("parameters", {}) for each in accelerators}
    cuda = {**wanted.pop("cuda", {}), **_cuda_options(parameters), "device_id": device}
    providers = [(CUDA, cuda)]
    if "tensorrt" in wanted:
        providers.insert(0, (TENSORRT, {**_tensorrt_options(wanted.pop("tensorrt")), "device_id": device}))
    if wanted:
        raise PlanError(f'unknown execution accelerator "{next(iter(wanted))}"; it must be "cuda" or "tensorrt"')
    return providers


def _cuda_options(parameters: Options) -> Options:
    options = {}
    for key, names in _CUDA_PARAMETERS.items():
        if key in parameters:
            value = parameters.pop(key)
            if names and value not in names:
                raise PlanError(f"parameters.{key} is {value}; it must be one of {', '.join(names)}")
            options[key] = names.get(value, value)
    return options


def _tensorrt_options(parameters: Options) -> Options:
    options: Options = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                raise PlanError(f"precision_mode is {value}; it must be one of {', '.join(_TENSORRT_PRECISIONS)}")
            options |= _TENSORRT_PRECISIONS[value]
        elif key in _TENSORRT_NAMES:
            options[_TENSORRT_NAMES[key]] = value
        elif key.startswith("trt_"):
            options[key] = value
        else:
            raise PlanError(f'unknown parameter "{key}" of the execution accelerator "tensorrt"')
    return options


def _check_available(providers: list[Provider], device: str, available: Collection[str]) -> None:
    for name, _ in providers:
        if name not in available:
            raise PlanError(
                f"the config places this model on GPU {device} with {name}, which the onnxruntime installed does not "
                "have; in an environment without the extra cpu: pip install '.[server,gpu]'"
            )
