"""EVA-CLIP checkpoints (8B, 18B and smaller ones of the same layout), without remote code.

The image tower is timm's `Eva`, the text tower open_clip's `TextTransformer`; both reproduce the published
modelling code (github.com/baaivision/EVA, `EVA-CLIP-18B`) to float32 accuracy. Weights are read in the Hugging
Face key layout (`vision_model.*`, `text_model.*`) and in the older one of a single file (`visual.*`, `text.*`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import LayerNorm, TextTransformer
from timm.layers import RmsNorm
from timm.models.eva import Eva
from torch import Tensor, nn

from clipchoir_export.checkpoints.checks import Only, StateDict, check_config, check_shapes, without_nulls
from clipchoir_export.checkpoints.stored_tensors import StoredTensor, concatenated
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import Family, PublishedFile
from clipchoir_export.families.towers import CLIP_TOKENIZER, VOCABULARY, Architecture, Tower
from clipchoir_export.spec import EncoderSpec
from clipchoir_steps.label_sets.tokenizer import CONTEXT_LENGTH


@dataclass(frozen=True)
class TowerConfig:
    """Size of one transformer tower."""

    width: int
    layers: int
    heads: int
    mlp_width: int


@dataclass(frozen=True)
class EvaClipConfig:
    """What distinguishes one EVA-CLIP from another."""

    image: TowerConfig
    text: TowerConfig
    embedding_dim: int
    post_norm: bool
    image_size: int = 224
    patch_size: int = 14
    image_eps: float = 1e-6
    text_eps: float = 1e-5
    context_length: int = CONTEXT_LENGTH
    vocab_size: int = VOCABULARY

    @classmethod
    def from_json(cls, path: Path) -> "EvaClipConfig":
        """Read a Hugging Face `config.json`.

        Raises:
            CheckpointError: a key is missing, or the checkpoint is of a kind that these towers do not compute.
        """
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            check_config("config", without_nulls(config), _CONFIG_KEYS, _CONFIG_ONLY)
            vision, text = config["vision_config"], config["text_config"]
            check_config("vision_config", without_nulls(vision), _VISION_KEYS, _VISION_ONLY)
            check_config("text_config", without_nulls(text), _TOWER_KEYS, _TEXT_ONLY)
            return cls(
                image=_tower(vision),
                text=_tower(text),
                embedding_dim=config["projection_dim"],
                post_norm=bool(vision.get("post_layernorm", False)),
                image_size=vision.get("image_size", cls.image_size),
                patch_size=vision.get("patch_size", cls.patch_size),
                image_eps=vision.get("layer_norm_eps", cls.image_eps),
                text_eps=text.get("layer_norm_eps", cls.text_eps),
            )
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except KeyError as error:
            raise CheckpointError(f"{path}: key {error} is missing; an EVA-CLIP config.json has it") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as an EVA-CLIP config.json: {error}") from error


def _tower(config: Mapping[str, Any]) -> TowerConfig:
    return TowerConfig(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
    )


# What a `config.json` may say beside what `EvaClipConfig` takes: it is named here with its reason, or refused.
# Without effect: of transformers' `PretrainedConfig`, which writes them all; about training, other tasks than
# embedding, the type of the weights, which their files say, and the logit scale, which is the ensemble's own.
_WITHOUT_EFFECT = {
    "_commit_hash", "_name_or_path", "architectures", "attention_dropout", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range",
    "is_encoder_decoder", "label2id", "length_penalty", "logit_scale_init_value", "max_length", "min_length",
    "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
    "chunk_size_feed_forward",  # how a product is cut, not what it is
}  # fmt: skip
_TOWER_KEYS = _WITHOUT_EFFECT | {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps",
    "projection_dim",  # without effect: that of the whole model counts
}  # fmt: skip
_CONFIG_KEYS = _WITHOUT_EFFECT | {"projection_dim", "vision_config", "text_config"}
_VISION_KEYS = _TOWER_KEYS | {"image_size", "patch_size", "post_layernorm"}

_PLAIN = "the towers are plain encoders"
_TOWER_ONLY = {
    "hidden_act": Only(("gelu",), "EVA-CLIP 8B and 18B have gelu"),
    "pruned_heads": Only(({}, None), _PLAIN),
    "is_decoder": Only((False,), _PLAIN),
    "add_cross_attention": Only((False,), _PLAIN),
}
_COPY = "sections are read from vision_config and text_config"
_CONFIG_ONLY = {"vision_config_dict": Only((None,), _COPY), "text_config_dict": Only((None,), _COPY)}
_VISION_ONLY = {
    **_TOWER_ONLY,
    "num_channels": Only((3,), "a repository gives its encoders RGB"),
    "use_rms_norm": Only((True,), "EVA-CLIP 8B and 18B have True"),
    **dict.fromkeys(("q_bias", "k_bias", "v_bias"), Only((False,), "EVA-CLIP 8B and 18B have False")),
}
_TEXT_ONLY = {
    **_TOWER_ONLY,
    "max_position_embeddings": Only((CONTEXT_LENGTH,), CLIP_TOKENIZER),
    "vocab_size": Only((VOCABULARY,), CLIP_TOKENIZER),
    # Text towers are CLIP's: with biases, and norms before each half of a layer.
    **dict.fromkeys(("q_bias", "k_bias", "v_bias"), Only((True,), "EVA-CLIP 8B and 18B have True")),
    **dict.fromkeys(("use_rms_norm", "post_layernorm"), Only((False,), "EVA-CLIP 8B and 18B have False")),
}

# `preprocessor_config.json` beside it, where there is one. Crops and sizes: a repository squashes images, as for every
# encoder, to the size that the config has.
_PROCESSOR_KEYS = {
    "_valid_processor_keys", "crop_size", "do_center_crop", "do_convert_rgb", "feature_extractor_type",
    "image_processor_type", "processor_class", "size",
}  # fmt: skip
_NORMALISED = "images are resized with bicubic interpolation and normalised as CLIP's"
_PROCESSOR_ONLY = {
    **dict.fromkeys(("do_normalize", "do_rescale", "do_resize"), Only((True,), _NORMALISED)),
    "image_mean": Only((list(OPENAI_DATASET_MEAN),), _NORMALISED),
    "image_std": Only((list(OPENAI_DATASET_STD),), _NORMALISED),
    "resample": Only((3,), _NORMALISED),
    "rescale_factor": Only((1 / 255,), _NORMALISED),
}


_TEXT = TowerConfig(width=1280, layers=32, heads=20, mlp_width=5120)
_IMAGE_8B = TowerConfig(width=4096, layers=32, heads=32, mlp_width=20480)
_IMAGE_18B = TowerConfig(width=5120, layers=48, heads=40, mlp_width=25600)

KNOWN_CONFIGS = {
    "EVA-CLIP-8B": EvaClipConfig(_IMAGE_8B, _TEXT, embedding_dim=1280, post_norm=False),
    "EVA-CLIP-8B-448": EvaClipConfig(_IMAGE_8B, _TEXT, embedding_dim=1280, post_norm=False, image_size=448),
    "EVA-CLIP-18B": EvaClipConfig(_IMAGE_18B, _TEXT, embedding_dim=1536, post_norm=True),
}
"""The published checkpoints (Sun et al., "EVA-CLIP-18B", arXiv 2402.04252)."""


class _EvaClip:
    """Checkpoints of EVA-CLIP."""

    published_names = ""

    def describe(self, encoder: EncoderSpec, path: Path) -> Architecture:
        config = _config(encoder, path)
        return Architecture(config.image_size, config.embedding_dim, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)

    def identity(self, encoder: EncoderSpec, path: Path) -> Mapping[str, Any]:
        return {"config": asdict(_config(encoder, path))}

    def image_tower(self, encoder: EncoderSpec, path: Path) -> nn.Module:
        return build_image_tower(_config(encoder, path))

    def open_towers(
        self, encoder: EncoderSpec, path: Path, tensors: Mapping[str, StoredTensor], *, fused_qkv: bool
    ) -> tuple[Tower, Tower]:
        return _open_towers(tensors, _config(encoder, path), fused_qkv)

    def published_file(self, encoder: EncoderSpec) -> PublishedFile | None:
        del encoder  # these checkpoints have no names beside their hub ids
        return None


FAMILY: Family = _EvaClip()


def _check_processor(file: Path) -> None:
    try:
        processor = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        check_config("preprocessor_config", processor, _PROCESSOR_KEYS, _PROCESSOR_ONLY)
    except (OSError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _config(encoder: EncoderSpec, path: Path) -> EvaClipConfig:
    _check_processor(path / "preprocessor_config.json")
    config_file = path / "config.json"
    found = EvaClipConfig.from_json(config_file) if config_file.is_file() else None
    if encoder.architecture is None:
        if found is None:
            raise CheckpointError(f'there is no {config_file}; name its "architecture"')
        return found
    if encoder.architecture not in KNOWN_CONFIGS:
        raise CheckpointError(f'unknown architecture "{encoder.architecture}"; known are {", ".join(KNOWN_CONFIGS)}')
    expected = KNOWN_CONFIGS[encoder.architecture]
    if found is not None and found != expected:
        raise CheckpointError(
            f"{config_file} is not of {encoder.architecture}: it says {found}, {encoder.architecture} is {expected}"
        )
    return expected


def build_image_tower(config: EvaClipConfig, fused_qkv: bool = True) -> Eva:
    """An uninitialised image tower: float32 (N, 3, S, S) normalised pixels -> (N, embedding_dim).

    Args:
        config: sizes of the tower.
        fused_qkv: one projection for queries, keys and values instead of three.
    """
    tower = Eva(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.embedding_dim,
        global_pool="token",
        embed_dim=config.image.width,
        depth=config.image.layers,
        num_heads=config.image.heads,
        qkv_bias=False,
        qkv_fused=fused_qkv,
        mlp_ratio=config.image.mlp_width / config.image.width,
        use_post_norm=config.post_norm,
        use_abs_pos_emb=True,
        norm_layer=partial(RmsNorm, eps=config.image_eps),
    )
    tower.head = nn.Linear(config.image.width, config.embedding_dim, bias=False)
    return tower


def build_text_tower(config: EvaClipConfig) -> TextTransformer:
    """An uninitialised text tower: int64 (N, context_length) tokens -> (N, embedding_dim), pooled at the EOT."""
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.text.width,
        heads=config.text.heads,
        layers=config.text.layers,
        mlp_ratio=config.text.mlp_width / config.text.width,
        output_dim=config.embedding_dim,
        norm_layer=partial(LayerNorm, eps=config.text_eps),
    )


@dataclass(frozen=True)
class KeyRule:
    """How one tensor of a tower is made of a checkpoint's tensors (and back)."""

    ours: str
    theirs: tuple[str, ...]  # more than one: concatenated along the first axis
    leading_axes: int = 0  # axes of length 1 that the tower has in front
    transposed: bool = False

    def read(self, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
        tensor = concatenated([tensors[name] for name in self.theirs])
        if self.transposed:
            tensor = tensor.transposed()
        return tensor.reshaped((1,) * self.leading_axes + tensor.shape) if self.leading_axes else tensor

    def write(self, tensor: Tensor) -> StateDict:
        tensor = tensor.reshape(tensor.shape[self.leading_axes :])
        if self.transposed:
            tensor = tensor.t()
        return dict(zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True))


def image_key_rules(config: EvaClipConfig, fused_qkv: bool = True) -> list[KeyRule]:
    """Rules for every tensor of the image tower, in the Hugging Face layout."""
    embeddings = "vision_model.embeddings."
    rules = [
        KeyRule("cls_token", (embeddings + "class_embedding",), leading_axes=2),
        KeyRule("pos_embed", (embeddings + "position_embedding.weight",), leading_axes=1),
        KeyRule("patch_embed.proj.weight", (embeddings + "patch_embedding.weight",)),
        KeyRule("patch_embed.proj.bias", (embeddings + "patch_embedding.bias",)),
        KeyRule("norm.weight", ("vision_model.post_layernorm.weight",)),
        KeyRule("head.weight", ("visual_projection.weight",)),
    ]
    for index in range(config.image.layers):
        ours, theirs = f"blocks.{index}.", f"vision_model.encoder.layers.{index}."
        if fused_qkv:
            rules.append(_qkv_rule(ours + "attn.qkv.weight", theirs, "weight"))
        else:
            rules += [KeyRule(f"{ours}attn.{x}_proj.weight", (f"{theirs}self_attn.{x}_proj.weight",)) for x in "qkv"]
        rules += [
            KeyRule(ours + our_name, (theirs + their_name,))
            for our_name, their_name in (
                ("attn.proj.weight", "self_attn.out_proj.weight"),
                ("attn.proj.bias", "self_attn.out_proj.bias"),
                ("norm1.weight", "layer_norm1.weight"),
                ("norm2.weight", "layer_norm2.weight"),
                ("mlp.fc1.weight", "mlp.fc1.weight"),
                ("mlp.fc1.bias", "mlp.fc1.bias"),
                ("mlp.fc2.weight", "mlp.fc2.weight"),
                ("mlp.fc2.bias", "mlp.fc2.bias"),
            )
        ]
    return rules


def text_key_rules(config: EvaClipConfig) -> list[KeyRule]:
    """Rules for every tensor of the text tower, in the Hugging Face layout."""
    embeddings = "text_model.embeddings."
    rules = [
        KeyRule("token_embedding.weight", (embeddings + "token_embedding.weight",)),
        KeyRule("positional_embedding", (embeddings + "position_embedding.weight",)),
        KeyRule("ln_final.weight", ("text_model.final_layer_norm.weight",)),
        KeyRule("ln_final.bias", ("text_model.final_layer_norm.bias",)),
        KeyRule("text_projection", ("text_projection.weight",), transposed=True),
    ]
    for index in range(config.text.layers):
        ours, theirs = f"transformer.resblocks.{index}.", f"text_model.encoder.layers.{index}."
        for kind in ("weight", "bias"):
            rules.append(_qkv_rule(f"{ours}attn.in_proj_{kind}", theirs, kind))
            rules += [
                KeyRule(f"{ours}{our_name}.{kind}", (f"{theirs}{their_name}.{kind}",))
                for our_name, their_name in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                )
            ]
    return rules


def _qkv_rule(ours: str, layer: str, kind: str) -> KeyRule:
    return KeyRule(ours, tuple(f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv"))


_NOT_IN_A_TOWER = re.compile(r"logit_scale|.*\.position_ids")


def _open_towers(tensors: Mapping[str, StoredTensor], config: EvaClipConfig, fused_qkv: bool) -> tuple[Tower, Tower]:
    """Both towers of a checkpoint in either layout.

    The older layout may have the three projections joined already; there they are joined in any case.
    """
    is_single_file = any(name.startswith("visual.") for name in tensors)
    if is_single_file:
        fused_qkv = fused_qkv or "visual.blocks.0.attn.qkv.weight" in tensors
    image_rules, text_rules = image_key_rules(config, fused_qkv), text_key_rules(config)
    if is_single_file:
        image_rules = [_single_file_rule("visual.", rule, tensors) for rule in image_rules]
        text_rules = [_single_file_rule("text.", rule, tensors) for rule in text_rules]
    present = {name: tensor for name, tensor in tensors.items() if not _NOT_IN_A_TOWER.fullmatch(name)}
    builders = partial(build_image_tower, config, fused_qkv), partial(build_text_tower, config)
    wanted: StateDict = {}
    for build, rules in zip(builders, (image_rules, text_rules), strict=True):
        with torch.device("meta"):
            state = build().state_dict()
        for rule in rules:
            wanted |= rule.write(state[rule.ours])
    check_shapes(wanted, present)
    return (
        Tower(builders[0], {rule.ours: rule.read(tensors) for rule in image_rules}),
        Tower(builders[1], {rule.ours: rule.read(tensors) for rule in text_rules}),
    )


def to_hugging_face(image: StateDict, text: StateDict, logit_scale: Tensor, config: EvaClipConfig) -> StateDict:
    """State dicts of both towers in the Hugging Face layout; `logit_scale` is a logarithm, as checkpoints store it."""
    tensors = {"logit_scale": logit_scale.reshape(())}
    for rules, tower in ((image_key_rules(config), image), (text_key_rules(config), text)):
        for rule in rules:
            tensors.update(rule.write(tower[rule.ours]))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _single_file_rule(prefix: str, rule: KeyRule, tensors: Mapping[str, StoredTensor]) -> KeyRule:
    whole = prefix + rule.ours
    parts = tuple(whole.replace(".qkv.", f".{part}_proj.") for part in "qkv")
    return KeyRule(rule.ours, parts if ".qkv." in whole and parts[0] in tensors else (whole,))
