"""Checkpoints into ONNX, against independent forward passes; and what is refused."""

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

from clipchoir_export.build import verification
from clipchoir_export.build.verification import Verification
from clipchoir_export.errors import CheckpointError, VerificationError
from clipchoir_export.families import registry as encoders
from clipchoir_export.onnx.files import open_session, write_model
from clipchoir_export.onnx.graph import Signature, trace
from clipchoir_export.onnx.modules import ServedImageEncoder, ServedTextEncoder
from clipchoir_export.spec import Dialect, EncoderSpec, Precision
from tests.support import checkpoints, reference

MODEL = "open_clip_model.safetensors"


def encoder_spec(folder: Path, source: str, sharpness: float = 1.7) -> EncoderSpec:
    return EncoderSpec(name="tiny", source=source, checkpoint=str(folder), sharpness=sharpness)


def plain_way(folder: Path, source: str, pixels: NDArray[np.uint8], sharpness: float) -> NDArray[np.float32]:
    batch = torch.stack([reference.normalised(Image.fromarray(image), sharpness) for image in pixels])
    with torch.inference_mode():
        if source == "open_clip":
            model = open_clip.create_model(f"local-dir:{folder}").eval()
        else:
            model = reference.HuggingFaceEvaClip.load(folder)
        return F.normalize(model.encode_image(batch), dim=-1).numpy()


def cosines_to_the_plain_way(
    session: onnxruntime.InferenceSession, folder: Path, source: str, sharpness: float
) -> NDArray[np.float32]:
    """Of a graph's embeddings, which have to be float32 and of length 1, for five images."""
    pixels = verification.sample_images(5, 224)
    (actual,) = session.run(["embedding"], {"pixels": pixels})
    assert actual.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-6)
    cosines: NDArray[np.float32] = (actual * plain_way(folder, source, pixels, sharpness)).sum(axis=1)
    return cosines


def write_checkpoint(folder: Path, kind: str) -> tuple[str, Path]:
    """`kind` is a source, for EVA-CLIP with where it has its norms."""
    source, _, norm = kind.partition(" ")
    if source == "open_clip":
        return source, checkpoints.write_open_clip(folder)
    return source, checkpoints.write_eva_clip(folder, post_norm=norm == "post-norm")


def export_image_encoder(
    spec: EncoderSpec, folder: Path, precision: Precision = "fp32", dialect: Dialect = "portable"
) -> encoders.Encoder:
    """Write `model.onnx` into the folder."""
    encoder = encoders.open_encoder(spec, Path("spec.toml"))
    module = ServedImageEncoder(encoder.image.skeleton(), encoder.architecture, spec.sharpness)
    signature = Signature("pixels", (224, 224, 3), torch.uint8)
    folder.mkdir(exist_ok=True)
    write_model(trace(module, signature, encoder.image.weights, precision, dialect), folder, lambda _: None)
    return encoder


KINDS = ["open_clip", "eva_clip post-norm", "eva_clip pre-norm"]


@pytest.mark.parametrize("dialect", ["portable", "current"])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_equals_an_independent_forward_pass_at_every_batch_size(
    tmp_path: Path, kind: str, dialect: Dialect
) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    spec = encoder_spec(folder, source)
    encoder = export_image_encoder(spec, tmp_path / "model", dialect=dialect)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for batch in (1, 2, 5, 32):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), np.uint8)
        (actual,) = session.run(["embedding"], {"pixels": pixels})
        assert actual.shape == (batch, encoder.architecture.embedding_dim)
        expected = plain_way(folder, source, pixels, spec.sharpness)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("dialect", ["portable", "current"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_close_to_an_independent_forward_pass(tmp_path: Path, kind: str, dialect: Dialect) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    spec = encoder_spec(folder, source)
    export_image_encoder(spec, tmp_path / "model", "fp16", dialect)
    cosines = cosines_to_the_plain_way(open_session(tmp_path / "model" / "model.onnx"), folder, source, spec.sharpness)
    assert 0.99999 < cosines.min() < 0.99999999  # close, but not float32 under another name


@pytest.mark.parametrize("dialect", ["portable", "current"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_where_numbers_must_not_be_rounded_the_graph_computes_in_float32(
    tmp_path: Path, kind: str, precision: Precision, dialect: Dialect
) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    export_image_encoder(encoder_spec(folder, source), tmp_path / "model", precision, dialect)
    model = onnx.load(tmp_path / "model" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    low = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    seen: collections.Counter[str] = collections.Counter()
    for node in graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type in ("Softmax", "ReduceMean", "ReduceL2", "Floor"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node
        elif node.op_type in ("LayerNormalization", "RMSNormalization"):
            assert attributes.get("stash_type", 1) == onnx.TensorProto.FLOAT
        elif node.op_type == "Attention":
            assert attributes["softmax_precision"] == onnx.TensorProto.FLOAT
        elif node.op_type in ("MatMul", "Gemm"):
            assert types[node.output[0]] == low, node
        seen[node.op_type] += 1
    assert seen["MatMul"] >= 6
    assert (seen["Softmax"], seen["Attention"]) == ((2, 0) if dialect == "portable" else (0, 2))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_towers_and_their_graphs_equal_independent_forward_passes(
    tmp_path: Path, kind: str, precision: Precision
) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    tokens = open_clip.SimpleTokenizer()(["a photo of a cat", "", "long " * 100, "a dog", "sea"])
    with torch.inference_mode():
        if source == "open_clip":
            expected = open_clip.create_model(f"local-dir:{folder}").eval().encode_text(tokens)
        else:
            expected = reference.HuggingFaceEvaClip.load(folder).encode_text(tokens)
        encoder = encoders.open_encoder(encoder_spec(folder, source), tmp_path / "spec.toml")
        torch.testing.assert_close(encoder.text.load()(tokens), expected, atol=1e-5, rtol=1e-5)
    module, signature = ServedTextEncoder(encoder.text.skeleton()), Signature("tokens", (77,), torch.int64)
    write_model(trace(module, signature, encoder.text.weights, precision, "portable"), tmp_path, lambda _: None)
    session = open_session(tmp_path / "model.onnx")
    for batch in (1, 2, 5):
        (actual,) = session.run(["embedding"], {"tokens": tokens[:batch].numpy()})
        tolerance = 2e-5 if precision == "fp32" else 2e-3
        np.testing.assert_allclose(actual, F.normalize(expected[:batch], dim=-1).numpy(), atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_tower_computes_the_same_and_holds_one_layer_at_a_time(tmp_path: Path, kind: str) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    encoder = encoders.open_encoder(encoder_spec(folder, source), tmp_path / "spec.toml")
    images = torch.randn(3, 3, 224, 224, generator=torch.manual_seed(1))
    held = []
    with torch.inference_mode():
        expected = encoder.image.load()(images)
    with encoder.image.streamed() as module:
        for layer in module.modules():
            layer.register_forward_pre_hook(
                lambda *_: held.append({name for name, each in module.named_parameters() if not each.is_meta})
            )
        torch.testing.assert_close(module(images), expected, atol=1e-6, rtol=1e-6)
    blocks = [{name.split(".blocks.")[-1] for name in names if "blocks." in name} for names in held]
    assert max(len(names) for names in blocks) <= 4  # of 12 in a block: an attention's
    assert any(blocks)


def verify(model: Path, encoder: encoders.Encoder, sharpness: float, precision: Precision = "fp32") -> Verification:
    classifier = F.normalize(torch.randn(6, encoder.architecture.embedding_dim, generator=torch.manual_seed(0)))
    result, _ = verification.verify_image_encoder(
        model,
        encoder.image,
        encoder.architecture,
        sharpness,
        precision,
        (1, 2, 5),
        classifier.numpy(),
        lambda _: None,
    )
    return result


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_right_encoder_passes_the_verification(tmp_path: Path, precision: Precision) -> None:
    spec = encoder_spec(checkpoints.write_eva_clip(tmp_path / "checkpoint"), "eva_clip")
    encoder = export_image_encoder(spec, tmp_path / "model", precision)
    result = verify(tmp_path / "model", encoder, spec.sharpness, precision)
    assert result.min_cosine > {"fp32": 0.999999, "fp16": 0.99999, "bf16": 0.999, "int8": 0.99}[precision]
    assert result.top1_agreed == result.top1_decided > 0
    assert result.arithmetic == ("widened to float32" if precision == "bf16" else "as stored")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.onnx"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_different_encoder_fails_the_verification(tmp_path: Path, precision: Precision) -> None:
    specs = [encoder_spec(checkpoints.write_open_clip(tmp_path / str(seed), seed), "open_clip") for seed in (1, 2)]
    first = export_image_encoder(specs[0], tmp_path / "model", precision)
    second = encoders.open_encoder(specs[1], tmp_path / "spec.toml")
    with pytest.raises(VerificationError, match="differs from its PyTorch original"):
        verify(tmp_path / "model", second, 1.7, precision)
    if precision == "fp32":
        with pytest.raises(VerificationError):
            verify(tmp_path / "model", first, 2.3)


def test_a_graph_that_mixes_up_the_rows_of_a_batch_fails_the_verification(tmp_path: Path) -> None:
    spec = encoder_spec(checkpoints.write_open_clip(tmp_path / "checkpoint"), "open_clip")
    encoder = export_image_encoder(spec, tmp_path / "model", "fp16")
    path = tmp_path / "model" / "model.onnx"
    model = onnx.load(path)
    flip = onnx.helper.make_node("Slice", ["pixels", "from", "to", "axis", "step"], ["flipped"])
    for node in model.graph.node:
        node.input[:] = ["flipped" if name == "pixels" else name for name in node.input]
    model.graph.node.insert(0, flip)
    for name, number in (("from", -1), ("to", -(2**31)), ("axis", 0), ("step", -1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
    onnx.save(model, path)
    with pytest.raises(VerificationError, match=r"cosine|nearer to another image's"):
        verify(tmp_path / "model", encoder, spec.sharpness, "fp16")


def test_the_fingerprint_changes_with_the_checkpoint_alone(tmp_path: Path) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    specs = [encoder_spec(folder, "open_clip", sharpness) for sharpness in (1.0, 2.0)]
    one, other = (encoders.open_encoder(spec, tmp_path / "spec.toml").fingerprint() for spec in specs)
    assert one == other
    checkpoints.write_open_clip(folder, seed=5)
    assert encoders.open_encoder(specs[0], tmp_path / "spec.toml").fingerprint() != one


def change_open_clip(folder: Path, change: str) -> None:
    tensors = load_file(folder / MODEL)
    if change == "missing":
        del tensors["visual.proj"]
    elif change == "unexpected":
        tensors["visual.surprise"] = torch.zeros(2)
    elif change == "shape":
        tensors["visual.proj"] = torch.zeros(32, 25)
    save_file(tensors, folder / MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing keys: visual.proj"),
        ("unexpected", "1 unexpected keys: visual.surprise"),
        ("shape", r"visual.proj has shape \(32, 25\), the architecture has \(32, 24\)"),
    ],
)
def test_keys_and_shapes_must_match_in_an_open_clip_checkpoint(tmp_path: Path, change: str, message: str) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    change_open_clip(folder, change)
    with pytest.raises(CheckpointError, match=message):
        encoders.open_encoder(encoder_spec(folder, "open_clip"), tmp_path / "spec.toml")


def test_keys_must_match_in_an_eva_clip_checkpoint(tmp_path: Path) -> None:
    folder = checkpoints.write_eva_clip(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing keys: visual_projection.weight; 1 unexpected keys: extra.weight"
    ):
        encoders.open_encoder(encoder_spec(folder, "eva_clip"), tmp_path / "spec.toml")


@pytest.mark.parametrize(("damage", "message"), [("truncated", MODEL), ("absent", "holds no weights")])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str, message: str) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    path = folder / MODEL
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=message):
        encoders.open_encoder(encoder_spec(folder, "open_clip"), tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("architecture", "checkpoint", "message"),
    [
        ("ViT-nothing", "metaclip_fullcc", 'open_clip has no architecture "ViT-nothing"'),
        ("ViT-bigG-14-quickgelu", "metaclip_2_5b", "it has: metaclip_fullcc"),
        ("ViT-L-14-quickgelu", "laion2b_s32b_b82k", 'open_clip has no checkpoint "laion2b_s32b_b82k"'),
        ("ViT-B-32", "openai", "the architecture is ViT-B-32-quickgelu"),
    ],
)
def test_a_wrong_open_clip_name_tag_or_activation_is_an_error(
    tmp_path: Path, architecture: str, checkpoint: str, message: str
) -> None:
    spec = EncoderSpec(name="x", source="open_clip", architecture=architecture, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=message):
        encoders.describe(spec, tmp_path / "spec.toml")
