"""Every graph that the export writes keeps to what TensorRT's ONNX parser takes."""

import json
from pathlib import Path
from typing import Any

import onnx
import open_clip
import pytest
import timm.models.eva
import torch
from onnx import TensorProto
from safetensors.torch import save_file
from timm.models import register_model

from clipchoir_export.families import registry as encoders
from clipchoir_export.onnx.files import write_model
from clipchoir_export.onnx.graph import Signature, trace
from clipchoir_export.onnx.modules import ServedImageEncoder, ServedTextEncoder
from clipchoir_export.spec import EncoderSpec
from tests.support import checkpoints, tensorrt_operators

TOWERS = [
    "open_clip image",
    "open_clip text",
    "eva02 image",
    "eva_clip post-norm image",
    "eva_clip pre-norm image",
    "eva_clip text",
]


@register_model  # type: ignore[untyped-decorator]
def eva02_tiny_patch32_clip_224(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """timm's `eva02_base_patch16_clip_224`, which open_clip's EVA02-B-16 is made of, in small."""
    size = {"img_size": 224, "patch_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "ref_feat_shape": (7, 7)}
    kind = {
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "use_rot_pos_emb": True,
    }
    shape = {"mlp_ratio": 4 * 2 / 3, "global_pool": options.pop("global_pool", "token")}
    name = "eva02_base_patch16_clip_224"
    module: torch.nn.Module = timm.models.eva._create_eva(name, pretrained, **size, **kind, **shape, **options)
    return module


def write_eva02(folder: Path) -> Path:
    vision = {
        "image_size": 224,
        "timm_model_name": "eva02_tiny_patch32_clip_224",
        "timm_pool": "token",
        "timm_proj": None,
    }
    config = {**checkpoints.OPEN_CLIP_CONFIG, "vision_cfg": vision}
    del config["quick_gelu"]
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**config, "custom_text": True}}))
    save_file(open_clip.CustomTextCLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def export(tower: str, spec_options: dict[str, str], folder: Path) -> onnx.ModelProto:
    source = "eva_clip" if tower.startswith("eva_clip") else "open_clip"
    if tower.startswith("eva02"):
        checkpoint = write_eva02(folder / "checkpoint")
    elif source == "open_clip":
        checkpoint = checkpoints.write_open_clip(folder / "checkpoint")
    else:
        checkpoint = checkpoints.write_eva_clip(folder / "checkpoint", post_norm="pre-norm" not in tower)
    content = {"name": "tiny", "source": source, "checkpoint": str(checkpoint), "sharpness": 1.7, **spec_options}
    spec = EncoderSpec.model_validate(content)
    encoder = encoders.open_encoder(spec, folder / "spec.toml")
    module: torch.nn.Module
    if tower.endswith("text"):
        module, signature = ServedTextEncoder(encoder.text.skeleton()), Signature("tokens", (77,), torch.int64)
        weights = encoder.text.weights
    else:
        module = ServedImageEncoder(encoder.image.skeleton(), encoder.architecture, spec.sharpness)
        signature = Signature("pixels", (224, 224, 3), torch.uint8)
        weights = encoder.image.weights
    write_model(trace(module, signature, weights, spec.precision, spec.dialect), folder, lambda _: None)
    return onnx.load(folder / "model.onnx")


@pytest.fixture(
    scope="module",
    params=[
        (tower, precision, dialect)
        for tower in TOWERS
        for precision in ("fp32", "fp16", "bf16")
        for dialect in ("portable", "current")
    ],
    ids=", ".join,
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A graph, with the shapes that ONNX infers of all its values."""
    tower, precision, dialect = request.param
    graph = export(tower, {"precision": precision, "dialect": dialect}, tmp_path_factory.mktemp("export"))
    return onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)


def types_of(graph: onnx.GraphProto) -> dict[str, str]:
    values = {
        value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]
    }
    values |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: TensorProto.DataType.Name(number) for name, number in values.items()}


def test_every_operator_is_in_tensorrts_list_with_the_type_that_it_is_used_for(model: onnx.ModelProto) -> None:
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version in tensorrt_operators.OPSETS
    types = types_of(model.graph)
    refused = {
        f"{node.op_type}({types[node.input[0]]} {node.input[0]})"
        for node in model.graph.node
        if types[node.input[0]] not in tensorrt_operators.TYPES.get(node.op_type, ())
    }
    assert not refused, f"not in {tensorrt_operators.SOURCE}"


def test_operators_with_restrictions_are_used_within_them(model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Attention", "LayerNormalization"):
            assert len(node.output) == 1
        if node.op_type == "Attention":
            assert len(node.input) <= 4  # no past keys and values
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert (attributes.get("softcap", 0), attributes.get("qk_matmul_output_mode", 0)) == (0, 0)
        if node.op_type.startswith("Reduce"):
            assert node.input[1] in constants
        if node.op_type == "Conv":
            assert node.input[1] in constants


def test_every_dimension_but_the_batch_is_fixed(model: onnx.ModelProto) -> None:
    graph = model.graph
    shapes = {
        value.name: [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
        for shape in [value.type.tensor_type.shape]
    }
    for name in (graph.input[0].name, graph.output[0].name):
        assert shapes[name][0] == "batch"
    for node in graph.node:
        for name in node.output:
            open_ended = [(axis, size) for axis, size in enumerate(shapes[name]) if not isinstance(size, int)]
            # Towers put the tokens first here and there, or heads and batch into one axis.
            assert len(open_ended) <= 1, (node.op_type, name, shapes[name])
            assert all(axis == 0 or size.split("*")[-1] == "batch" for axis, size in open_ended), (name, shapes[name])
