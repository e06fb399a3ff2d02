"""What a checkpoint's config says is used, known to be without effect, or refused by name before a weight is read."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from transformers import CLIPTextConfig, CLIPVisionConfig

from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import family_names, find_family
from clipchoir_export.families.registry import describe, open_encoder
from clipchoir_export.spec import EncoderSpec
from tests.support import checkpoints

CONFIGS = {"open_clip": "open_clip_config.json", "eva_clip": "config.json"}


def config_alone(folder: Path, source: str, section: str = "", changes: dict[str, Any] | None = None) -> EncoderSpec:
    """A checkpoint whose weights are missing, with changes in one section of its config ("a.b": one within another)."""
    write = {"open_clip": checkpoints.write_open_clip, "eva_clip": checkpoints.write_eva_clip}[source]
    for weights in write(folder).glob("*.safetensors"):
        weights.unlink()
    config = json.loads((folder / CONFIGS[source]).read_text())
    table = config
    for part in filter(None, section.split(".")):
        table = table[part]
    table.update(changes or {})
    (folder / CONFIGS[source]).write_text(json.dumps(config))
    return EncoderSpec(name="tiny", source=source, checkpoint=str(folder))


REFUSED = [
    ("open_clip", "model_cfg", "multimodal_cfg", {"width": 512}),
    ("open_clip", "model_cfg", "init_logit_bias", -10),
    ("open_clip", "model_cfg", "cast_dtype", "float16"),
    ("open_clip", "model_cfg", "surprise", 1),
    ("open_clip", "model_cfg.vision_cfg", "image_size", [224, 336]),
    ("open_clip", "model_cfg.vision_cfg", "output_tokens", True),
    ("open_clip", "model_cfg.vision_cfg", "surprise", None),
    ("open_clip", "model_cfg.text_cfg", "context_length", 64),
    ("open_clip", "model_cfg.text_cfg", "vocab_size", 32000),
    ("open_clip", "model_cfg.text_cfg", "hf_tokenizer_name", "bert-base-uncased"),
    ("open_clip", "model_cfg.text_cfg", "hf_model_name", "roberta-base"),
    ("open_clip", "model_cfg.text_cfg", "tokenizer_mode", "clips"),
    ("open_clip", "model_cfg.text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
    ("open_clip", "model_cfg.text_cfg", "output_tokens", True),
    ("open_clip", "model_cfg.text_cfg", "surprise", "x"),
    ("open_clip", "preprocess_cfg", "mode", "L"),
    ("open_clip", "preprocess_cfg", "interpolation", "bilinear"),
    ("open_clip", "preprocess_cfg", "interpolation", "random"),
    ("open_clip", "preprocess_cfg", "resize_mode", "longest"),
    ("open_clip", "preprocess_cfg", "mean", [0.5]),
    ("open_clip", "preprocess_cfg", "std", 1),
    ("open_clip", "preprocess_cfg", "surprise", True),
    ("eva_clip", "", "vision_config_dict", {"hidden_size": 3}),
    ("eva_clip", "", "surprise", 1),
    ("eva_clip", "vision_config", "use_rms_norm", False),
    ("eva_clip", "vision_config", "q_bias", True),
    ("eva_clip", "vision_config", "hidden_act", "quick_gelu"),
    ("eva_clip", "vision_config", "num_channels", 4),
    ("eva_clip", "vision_config", "rope", True),
    ("eva_clip", "text_config", "max_position_embeddings", 64),
    ("eva_clip", "text_config", "vocab_size", 32000),
    ("eva_clip", "text_config", "hidden_act", "quick_gelu"),
    ("eva_clip", "text_config", "post_layernorm", True),
    ("eva_clip", "text_config", "k_bias", False),
    ("eva_clip", "text_config", "pruned_heads", {"1": [0]}),
    ("eva_clip", "text_config", "surprise", 1),
]


@pytest.mark.parametrize(("source", "section", "key", "value"), REFUSED)
def test_what_a_repository_cannot_do_is_refused_by_key_and_value_without_the_weights(
    tmp_path: Path, source: str, section: str, key: str, value: object
) -> None:
    spec = config_alone(tmp_path / "checkpoint", source, section, {key: value})
    named = f"{section.rpartition('.')[2] or 'config'}.{key} is {value!r}; "
    for refuse in (describe, open_encoder):
        with pytest.raises(CheckpointError) as refused:
            refuse(spec, tmp_path / "spec.toml")
        message = str(refused.value)
        assert message.startswith(f"encoder tiny: {tmp_path / 'checkpoint' / CONFIGS[source]}: ")
        assert named in message


HARMLESS: list[tuple[str, str, dict[str, Any]]] = [
    ("open_clip", "model_cfg", {"init_logit_scale": 2.0, "init_logit_bias": None, "custom_text": False}),
    ("open_clip", "model_cfg.vision_cfg", {"patch_dropout": 0.5, "image_size": [224, 224], "timm_drop": 0.0}),
    ("open_clip", "model_cfg.text_cfg", {"hf_tokenizer_name": "", "tokenizer_kwargs": None, "embed_cls": False}),
    ("open_clip", "preprocess_cfg", {"mode": "RGB", "size": 224, "fill_color": 9, "resize_mode": "shortest"}),
    ("eva_clip", "", {"model_type": "clip", "auto_map": {}, "torch_dtype": "float16", "logit_scale_init_value": 2.6}),
    ("eva_clip", "vision_config", {"hidden_act": "gelu", "dropout": 0.1, "pruned_heads": {}, "q_bias": False}),
    ("eva_clip", "text_config", {"vocab_size": 49408, "q_bias": True, "top_k": 50, "projection_dim": 512}),
]


@pytest.mark.parametrize(("source", "section", "changes"), HARMLESS)
def test_what_has_no_effect_changes_nothing(tmp_path: Path, source: str, section: str, changes: dict[str, Any]) -> None:
    plain = describe(config_alone(tmp_path / "plain", source), tmp_path / "spec.toml")
    assert describe(config_alone(tmp_path / "other", source, section, changes), tmp_path / "spec.toml") == plain


def test_a_config_with_all_that_transformers_writes_is_understood(tmp_path: Path) -> None:
    spec = config_alone(tmp_path / "checkpoint", "eva_clip")
    plain = describe(spec, tmp_path / "spec.toml")
    file = tmp_path / "checkpoint" / CONFIGS["eva_clip"]
    config = json.loads(file.read_text())
    for section, written in (("text_config", CLIPTextConfig()), ("vision_config", CLIPVisionConfig())):
        config[section] = written.to_dict() | {"rope_scaling": None, "hidden_act": "gelu"} | config[section]
    file.write_text(json.dumps(config | {"text_config_dict": None, "vision_config_dict": None, "_commit_hash": None}))
    assert describe(spec, tmp_path / "spec.toml") == plain


def named_checkpoint(folder: Path, **changes: dict[str, Any]) -> EncoderSpec:
    """A config alone: that of ViT-B-32-quickgelu, but for changes in some of its sections."""
    model = open_clip.get_model_config("ViT-B-32-quickgelu")
    for section in ("vision_cfg", "text_cfg"):
        model[section] = {**model[section], **changes.get(section, {})}
    folder.mkdir()
    config = {"model_cfg": model, "preprocess_cfg": changes.get("preprocess_cfg", {})}
    (folder / CONFIGS["open_clip"]).write_text(json.dumps(config))
    return EncoderSpec(name="x", source="open_clip", checkpoint=str(folder), architecture="ViT-B-32-quickgelu")


def test_a_checkpoint_of_a_named_architecture_is_prepared_as_its_own_folder_says(tmp_path: Path) -> None:
    spec = named_checkpoint(tmp_path / "checkpoint", preprocess_cfg={"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.4]})
    architecture = describe(spec, tmp_path / "spec.toml")
    assert (architecture.mean, architecture.std) == ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    other = spec.model_copy(update={"architecture": "ViT-B-32"})
    with pytest.raises(CheckpointError, match=r"model_cfg.quick_gelu is True, ViT-B-32 has False"):
        describe(other, tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("text_cfg", "heads", 4), ("vision_cfg", "head_width", 32), ("text_cfg", "no_causal_mask", True)],
)
def test_a_folder_that_says_otherwise_than_the_named_architecture_is_refused(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    """None of these shows in the shapes of the weights."""
    spec = named_checkpoint(tmp_path / "checkpoint", **{section: {key: value}})
    with pytest.raises(CheckpointError, match=rf"{section}\.{key} is {value}, ViT-B-32-quickgelu has "):
        describe(spec, tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("section", "changes"), [("vision_cfg", {"patch_dropout": 0.5, "head_width": 64}), ("text_cfg", {"eos_id": 2})]
)
def test_a_folder_may_spell_out_defaults_of_the_named_architecture(
    tmp_path: Path, section: str, changes: dict[str, Any]
) -> None:
    spec = named_checkpoint(tmp_path / "checkpoint", **{section: changes})
    assert describe(spec, tmp_path / "spec.toml").embedding_dim == 512


@pytest.mark.parametrize(
    ("architecture", "tag", "message"),
    [
        ("ViT-B-16-SigLIP", "webli", "model_cfg.init_logit_bias is -10"),
        ("ViT-L-14-CLIPA", "datacomp1b", "text_cfg.context_length is 32"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", "model_cfg.multimodal_cfg is "),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "text_cfg.hf_model_name is 'roberta-base'"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", "text_cfg.hf_tokenizer_name is 'facebook/xlm-v-base'"),
        ("MobileCLIP-S1", "datacompdr", "preprocess_cfg.interpolation is 'bilinear'"),
    ],
)
def test_published_models_that_would_be_exported_wrongly_are_refused(
    tmp_path: Path, architecture: str, tag: str, message: str
) -> None:
    spec = EncoderSpec(name="x", source="open_clip", architecture=architecture, checkpoint=tag)
    with pytest.raises(CheckpointError, match=message):
        describe(spec, tmp_path / "spec.toml")


def test_a_downloaded_tag_is_prepared_as_it_was_trained(tmp_path: Path) -> None:
    spec = EncoderSpec(name="x", source="open_clip", architecture="ViT-L-14", checkpoint="laion2b_s32b_b82k")
    ahead = describe(spec, tmp_path / "spec.toml")
    assert ahead.mean == (0.5, 0.5, 0.5)  # most tags have another
    file = tmp_path / "open_clip_model.safetensors"
    file.touch()
    assert find_family("open_clip").describe(spec, file) == ahead


@pytest.mark.parametrize(
    ("key", "value"), [("resample", 2), ("image_mean", [0.5, 0.5, 0.5]), ("do_normalize", False), ("surprise", 1)]
)
def test_an_image_processor_beside_an_eva_clip_that_changes_the_pixels_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    spec = config_alone(tmp_path / "checkpoint", "eva_clip")
    usual = {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
    }  # fmt: skip
    processor = tmp_path / "checkpoint" / "preprocessor_config.json"
    processor.write_text(json.dumps(usual))
    assert describe(spec, tmp_path / "spec.toml").image_size == 224
    processor.write_text(json.dumps({**usual, key: value}))
    with pytest.raises(CheckpointError) as refused:
        describe(spec, tmp_path / "spec.toml")
    assert f"{processor}: preprocessor_config.{key} is {value!r}; " in str(refused.value)


def test_every_family_is_a_file_that_implements_the_protocol() -> None:
    assert family_names() == ["eva_clip", "open_clip"]
    for name in family_names():
        assert callable(find_family(name).describe)
