"""The embedded onnxruntime backend: what a config asks of ONNX Runtime, on a GPU and without one."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import onnxruntime
import pytest
from google.protobuf import json_format

from clipchoir_server.backend.session import PlanError, SessionPlan, plan_session
from tests.unit.test_serving_configs import configs

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
EVERYTHING = (TENSORRT, CUDA, CPU)


def as_triton_hands_it_over(path: str, **serving: Any) -> dict[str, Any]:
    """A rendered config in the JSON form that Python backends get."""
    return json_format.MessageToDict(configs(**serving)[path], preserving_proto_field_name=True)


def plan(
    parameters: dict[str, str],
    kind: str = "CPU",
    environment: Mapping[str, str] = MappingProxyType({}),
    **optimization: Any,
) -> SessionPlan:
    config = {
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "optimization": optimization,
    }
    return plan_session(config, kind, "1", EVERYTHING, environment)


def accelerators(**each: dict[str, str]) -> dict[str, Any]:
    return {"gpu_execution_accelerator": [{"name": name, "parameters": options} for name, options in each.items()]}


def test_a_plain_config_runs_on_the_cpu_and_warms_up() -> None:
    found = plan_session(as_triton_hands_it_over("metaclip/config"), "CPU", "0", EVERYTHING, {})
    assert found.providers == [(CPU, {})]
    assert found.entries == {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    assert found.parts_at_a_time == len(os.sched_getaffinity(0))
    assert found.warmup_batch_sizes == [1, 16]
    assert found.graph_level == "ORT_ENABLE_EXTENDED"
    assert found.warnings == []


def test_the_gpu_variant_runs_on_cuda() -> None:
    found = plan_session(as_triton_hands_it_over("metaclip/configs/gpu"), "GPU", "2", EVERYTHING, {})
    options = {
        "device_id": "2",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert found.providers == [(CUDA, options), (CPU, {})]
    assert found.entries == {"session.use_device_allocator_for_initializers": "1"}
    assert found.parts_at_a_time == 0
    assert found.warmup_batch_sizes == []  # Triton does it
    assert found.warnings == []


def test_the_gpu_variant_with_tensorrt_tries_it_first() -> None:
    config = as_triton_hands_it_over("metaclip/configs/gpu", execution_provider="tensorrt", tensorrt_cache="/cache")
    found = plan_session(config, "GPU", "1", EVERYTHING, {})
    assert [name for name, _ in found.providers] == [TENSORRT, CUDA, CPU]
    options = found.providers[0][1]
    assert options["device_id"] == "1"
    assert options["trt_engine_cache_path"] == "/cache"
    assert options["trt_profile_max_shapes"] == "pixels:64x224x224x3"
    assert found.warnings == []


@pytest.mark.parametrize(("provider", "available"), [("cuda", (CPU,)), ("tensorrt", (CUDA, CPU))])
def test_a_missing_provider_is_an_error_that_names_the_extra(provider: str, available: tuple[str, ...]) -> None:
    config = as_triton_hands_it_over("metaclip/configs/gpu", execution_provider=provider)
    with pytest.raises(PlanError, match=r"on GPU 0 with (CUDA|Tensorrt)Exec.*pip install '\.\[server,gpu\]'"):
        plan_session(config, "GPU", "0", available, {})


def test_a_plain_config_on_a_machine_with_a_gpu_uses_it_if_it_can() -> None:
    config = as_triton_hands_it_over("metaclip/config")
    assert plan_session(config, "GPU", "3", EVERYTHING, {}).providers == [(CUDA, {"device_id": "3"}), (CPU, {})]
    found = plan_session(config, "GPU", "3", (CPU,), {})
    assert found.providers == [(CPU, {})]
    assert found.warnings == ["runs on the CPU and not on GPU 3: the onnxruntime installed is the one for CPUs"]


def test_tensorrts_keys_are_translated_as_nvidias_backend_does() -> None:
    options = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "int8_use_native_calibration_table": "1",
        "trt_builder_optimization_level": "5",
    }
    found = plan({}, "GPU", execution_accelerators=accelerators(tensorrt=options))
    assert found.providers[0] == (
        TENSORRT,
        {
            "device_id": "1",
            "trt_fp16_enable": "1",
            "trt_max_workspace_size": "1073741824",
            "trt_int8_use_native_calibration_table": "1",
            "trt_builder_optimization_level": "5",
        },
    )


def test_what_only_a_gpu_understands_is_ignored_on_the_cpu_and_told() -> None:
    found = plan({"gpu_mem_limit": "1"}, execution_accelerators=accelerators(cuda={}), cuda={"graphs": True})
    assert found.providers == [(CPU, {})]
    assert [warning.rpartition(" ")[2] for warning in found.warnings] == [
        "parameters.gpu_mem_limit",
        "optimization.execution_accelerators.gpu_execution_accelerator",
        "optimization.cuda",
    ]


@pytest.mark.parametrize(
    ("parameters", "optimization", "message"),
    [
        ({}, {"graph": {"level": 3}}, r"level is 3; it must be one of \[-1, 0, 1, 2\]"),
        ({"arena_extend_strategy": "2"}, {}, "arena_extend_strategy is 2; it must be one of 0, 1"),
        ({}, {"execution_accelerators": accelerators(openvino={})}, '"openvino"; it must be "cuda" or "tensorrt"'),
        ({}, {"execution_accelerators": accelerators(tensorrt={"speed": "9"})}, 'unknown parameter "speed"'),
        ({}, {"execution_accelerators": accelerators(tensorrt={"precision_mode": "FP8"})}, "FP32, FP16, BF16, INT8"),
    ],
)
def test_a_bad_value_is_named_with_the_good_ones(
    parameters: dict[str, str], optimization: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        plan(parameters, "GPU", **optimization)


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
def test_graph_levels_are_onnx_runtimes(level: int) -> None:
    name = plan({}, graph={"level": level}).graph_level
    assert hasattr(onnxruntime.GraphOptimizationLevel, name)


def test_the_launcher_gives_the_threads_of_a_session_and_the_config_overrules_it() -> None:
    assert plan({}, environment={"CLIPCHOIR_SESSION_THREADS": "3"}).intra_op_threads == 3
    assert plan({"intra_op_thread_count": "2"}, environment={"CLIPCHOIR_SESSION_THREADS": "3"}).intra_op_threads == 2
    assert plan({}).intra_op_threads == 0
    with pytest.raises(PlanError, match=r'CLIPCHOIR_SESSION_THREADS .* must be a whole number.*"many"'):
        plan({}, environment={"CLIPCHOIR_SESSION_THREADS": "many"})
