"""What `[serving]` of a spec makes of the configs: batching, queues, priorities, places."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from clipchoir_export.configs import render_configs
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import ServingSpec, find_ensemble, load_ensemble

SPEC = load_ensemble(find_ensemble("scenes"))
ENCODERS = ("metaclip", "evaclip")
TEXT_ENCODERS = ("metaclip_text", "evaclip_text")
STEPS = ("preprocess", *ENCODERS, *TEXT_ENCODERS, "ensembling")
Group = model_config_pb2.ModelInstanceGroup


def configs(precision: str = "fp16", **serving: Any) -> dict[str, model_config_pb2.ModelConfig]:
    """Parsed configs of the real pair, by path without its ending."""
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    architectures = {name: Architecture(224, 1280, mean, std) for name in ENCODERS}
    encoders = [encoder.model_copy(update={"precision": precision}) for encoder in SPEC.encoders]
    spec = SPEC.model_copy(update={"serving": ServingSpec.model_validate(serving), "encoders": encoders})
    rendered = render_configs(spec, architectures, text_encoders=ENCODERS)
    return {
        str(path.with_suffix("")): text_format.Parse(text, model_config_pb2.ModelConfig())
        for path, text in rendered.items()
    }


def test_only_preprocess_bounds_its_queue_and_only_what_is_not_encoded_yet_is_rejected() -> None:
    found = configs(preprocess_queue_size=7, preprocess_timeout_ms=1000, encoder_timeout_ms=2000)
    policies = {step: found[f"{step}/config"].dynamic_batching.default_queue_policy for step in STEPS}
    assert {step: policy.max_queue_size for step, policy in policies.items() if policy.max_queue_size} == {
        "preprocess": 7
    }
    timeouts = {step: policy.default_timeout_microseconds for step, policy in policies.items()}
    assert timeouts == {
        "preprocess": 1_000_000,
        **dict.fromkeys(ENCODERS, 2_000_000),
        **dict.fromkeys(TEXT_ENCODERS, 600_000_000),
        "ensembling": 0,
    }
    assert all(policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT for policy in policies.values())


def test_every_step_but_the_short_one_keeps_the_priorities() -> None:
    found = configs(priority_levels=5, default_priority=4)
    for step in STEPS:
        batching = found[f"{step}/config"].dynamic_batching
        expected = (0, 0) if step == "ensembling" else (5, 4)
        assert (batching.priority_levels, batching.default_priority_level) == expected
    # Triton hands out batches in advance, and misses none, only where a model has none of its features of queues.
    batching = found["ensembling/config"].dynamic_batching
    assert not batching.HasField("default_queue_policy")
    assert not batching.priority_queue_policy


def test_a_request_waits_for_less_time_than_the_client_does() -> None:
    serving = ServingSpec()
    assert serving.preprocess_timeout_ms + serving.encoder_timeout_ms < 60_000


def test_graphs_in_half_precision_go_without_the_last_level_of_optimisation() -> None:
    mean = std = (0.5, 0.5, 0.5)
    encoders = [
        encoder.model_copy(update={"precision": precision})
        for encoder, precision in zip(SPEC.encoders, ("fp32", "fp16"), strict=True)
    ]
    spec = SPEC.model_copy(update={"encoders": encoders})
    architectures = {name: Architecture(224, 1280, mean, std) for name in ENCODERS}
    levels = {
        path.parts[0]: text_format.Parse(text, model_config_pb2.ModelConfig()).optimization.graph.level
        for path, text in render_configs(spec, architectures, text_encoders=ENCODERS).items()
        if path.parts[0] in (*ENCODERS, *TEXT_ENCODERS)
    }
    assert [levels[name] for name in (*ENCODERS, *TEXT_ENCODERS)] == [0, 1, 0, 1]


def test_no_warm_up_is_larger_than_a_batch() -> None:
    config = configs(max_batch_size=8, warmup_batch_sizes=[16, 1, 8])["metaclip/config"]
    assert config.parameters["warmup_batch_sizes"].string_value == "1,8"
    assert not config.model_warmup  # it would count in the metrics


@pytest.mark.parametrize("model", [*ENCODERS, *TEXT_ENCODERS])
def test_the_gpu_variant_differs_in_place_and_options_only(model: str) -> None:
    found = configs()
    plain, variant = found[f"{model}/config"], found[f"{model}/configs/gpu"]
    assert [(group.kind, list(group.gpus), group.count) for group in variant.instance_group] == [
        (Group.KIND_GPU, [0], 1)
    ]
    for field in ("instance_group", "parameters", "model_warmup"):
        plain.ClearField(field)
        variant.ClearField(field)
    assert variant.optimization.execution_accelerators.gpu_execution_accelerator
    variant.optimization.ClearField("execution_accelerators")
    assert plain == variant


def test_the_gpu_variant_warms_up_the_smallest_and_the_largest_batch() -> None:
    variant = configs(max_batch_size=32)["metaclip_text/configs/gpu"]
    assert [warmup.batch_size for warmup in variant.model_warmup] == [1, 32]
    for warmup in variant.model_warmup:
        assert list(warmup.inputs) == [each.name for each in variant.input]
        assert list(warmup.inputs["tokens"].dims) == list(variant.input[0].dims)
        assert warmup.inputs["tokens"].data_type == variant.input[0].data_type


def test_encoders_can_be_placed_apart_and_text_encoders_on_the_cpu() -> None:
    found = configs(gpus=[0, 1], encoder_gpus={"evaclip": [2]}, gpu_instances=3, text_encoder_gpus=[])
    places = {
        model: [(group.kind, list(group.gpus), group.count) for group in found[f"{model}/configs/gpu"].instance_group]
        for model in (*ENCODERS, *TEXT_ENCODERS)
    }
    assert places == {
        "metaclip": [(Group.KIND_GPU, [0, 1], 3)],
        "evaclip": [(Group.KIND_GPU, [2], 3)],
        "metaclip_text": [(Group.KIND_CPU, [], 1)],
        "evaclip_text": [(Group.KIND_CPU, [], 1)],
    }
    by_default = configs(encoder_gpus={"evaclip": [2]})
    assert list(by_default["evaclip_text/configs/gpu"].instance_group[0].gpus) == [2]


def test_tensorrt_gets_one_profile_for_all_batch_sizes_with_cuda_behind_it() -> None:
    found = configs(execution_provider="tensorrt", max_batch_size=16, tensorrt_cache="/var/cache/engines")
    for model, shape in (("metaclip", "pixels:{}x224x224x3"), ("metaclip_text", "tokens:{}x77")):
        accelerators = found[f"{model}/configs/gpu"].optimization.execution_accelerators.gpu_execution_accelerator
        assert [each.name for each in accelerators] == ["tensorrt", "cuda"]
        assert dict(accelerators[0].parameters) == {
            "trt_profile_min_shapes": shape.format(1),
            "trt_profile_opt_shapes": shape.format(16),
            "trt_profile_max_shapes": shape.format(16),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/var/cache/engines",
        }
    assert not [path for path in found if Path(path).parts[0] == "preprocess" and "configs" in path]


def test_integers_are_computed_on_the_cpu_even_where_there_are_gpus() -> None:
    found = configs("int8", gpus=[0, 1])
    for encoder in ENCODERS:
        for name in ("config", "configs/gpu"):
            config = found[f"{encoder}/{name}"]
            assert [group.kind for group in config.instance_group] == [Group.KIND_CPU]
            assert config.optimization.graph.level == 0
        text = found[f"{encoder}_text/configs/gpu"]
        assert [group.kind for group in text.instance_group] == [Group.KIND_GPU]
