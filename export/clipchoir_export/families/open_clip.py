"""open_clip checkpoints: a named architecture, or a folder with `open_clip_config.json` as on the model hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from clipchoir_export.checkpoints.checks import Only, check_config, check_shapes
from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import Family, PublishedFile
from clipchoir_export.families.towers import CLIP_TOKENIZER, VOCABULARY, Architecture, Tower
from clipchoir_export.spec import EncoderSpec
from clipchoir_steps.label_sets.tokenizer import CONTEXT_LENGTH

_CONFIG_FILE = "open_clip_config.json"
_USUAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The first four are no weights; they are in checkpoints of the first CLIP.
_NOT_IN_A_TOWER = {"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_scale", "logit_bias"}

# What a config may say. All that open_clip builds the towers from is used; the rest is named with its reason.
_ONE_TENSOR = "towers must return one embedding and nothing else"
_BLOCKS = {
    "layers", "width", "mlp_ratio", "ls_init_value", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs",
    "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
}  # fmt: skip
_MODEL_KEYS = {
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text",
    # Without effect: similarities are scaled by the ensemble's own logit scale.
    "init_logit_scale", "nonscalar_logit_scale",
    "output_dict",  # without effect: what `forward` returns, which is not called
}  # fmt: skip
_MODEL_ONLY = {
    "multimodal_cfg": Only((None,), "CoCa's text tower is not supported"),
    "init_logit_bias": Only((None,), "the model is trained for a sigmoid for each class; scores here are a softmax"),
    "cast_dtype": Only((None,), "the type to compute in is the spec's precision"),
}
_INERT_VISION = {
    "patch_dropout", "timm_drop", "timm_drop_path",  # in training alone
    "timm_model_pretrained",  # the checkpoint's weights are taken
}  # fmt: skip
_INERT_TEXT = {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}  # where there is no `hf_model_name`
_VISION_KEYS = _BLOCKS | _INERT_VISION | {
    "head_width", "patch_size", "image_size", "attentional_pool", "attn_pooler_queries", "attn_pooler_heads",
    "no_ln_pre", "pos_embed_type", "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias",
}  # fmt: skip
_VISION_ONLY = {"output_tokens": Only((False, None), _ONE_TENSOR)}
_TEXT_KEYS = _BLOCKS | _INERT_TEXT | {
    "heads", "embed_cls", "pad_id", "eos_id", "no_causal_mask", "proj_bias", "proj_type",
}  # fmt: skip
_TEXT_ONLY = {
    "context_length": Only((CONTEXT_LENGTH,), CLIP_TOKENIZER),
    "vocab_size": Only((VOCABULARY,), CLIP_TOKENIZER),
    "hf_tokenizer_name": Only((None, ""), CLIP_TOKENIZER),
    "tokenizer_mode": Only((None,), CLIP_TOKENIZER),
    "tokenizer_kwargs": Only((None, {}), CLIP_TOKENIZER),
    "hf_model_name": Only((None, ""), "text towers of the transformers library are not supported"),
    "output_tokens": Only((False, None), _ONE_TENSOR),
}
_PREPROCESSING_KEYS = {
    "mean", "std",
    "size",  # without effect: open_clip, too, takes the image tower's
    "fill_color",  # without effect: only where images are padded
    # What open_clip knows of a tag beside its preprocessing; `quick_gelu` is compared.
    "url", "hf_hub", "quick_gelu",
}  # fmt: skip
_PREPROCESSING_ONLY = {
    "mode": Only(("RGB",), "a repository gives its encoders RGB"),
    "interpolation": Only(("bicubic",), "a repository resizes with bicubic interpolation"),
    # "shortest" crops what is beside the middle. The recipe squashes for every encoder, so that nothing is lost.
    "resize_mode": Only(("squash", "shortest"), "a repository resizes images to squares and pads none"),
}


class _OpenClip:
    """Checkpoints of open_clip."""

    published_names = "a tag of open_clip's, for which the spec must name the architecture"

    def describe(self, encoder: EncoderSpec, path: Path) -> Architecture:
        model, preprocessing = _model_config(encoder.architecture, path), _preprocessing(encoder, path)
        return Architecture(
            image_size=_image_size(model["vision_cfg"]),
            embedding_dim=model["embed_dim"],
            mean=_channels(preprocessing, "mean", OPENAI_DATASET_MEAN),
            std=_channels(preprocessing, "std", OPENAI_DATASET_STD),
        )

    def identity(self, encoder: EncoderSpec, path: Path) -> Mapping[str, Any]:
        architecture = self.describe(encoder, path)
        config = _model_config(encoder.architecture, path)
        return {"config": config, "mean": architecture.mean, "std": architecture.std}

    def image_tower(self, encoder: EncoderSpec, path: Path) -> nn.Module:
        tower: nn.Module = _build(_model_config(encoder.architecture, path)).visual
        return tower

    def open_towers(
        self, encoder: EncoderSpec, path: Path, tensors: Mapping[str, StoredTensor], *, fused_qkv: bool
    ) -> tuple[Tower, Tower]:
        del fused_qkv  # these checkpoints keep the three together
        return _open_towers(_model_config(encoder.architecture, path), tensors)

    def published_file(self, encoder: EncoderSpec) -> PublishedFile | None:
        if encoder.architecture is None or not _is_tag(encoder.checkpoint):
            return None
        published = _tag_config(encoder.architecture, encoder.checkpoint).get("hf_hub")
        if not published:
            raise CheckpointError(
                f'checkpoint "{encoder.checkpoint}" of {encoder.architecture} is on no hub; download it, and name its '
                "path"
            )
        repository, _, file = published.rpartition("/")  # "org/name/file", or "org/name/" for the usual names
        names = (str(Path(file).with_suffix(".safetensors")), file) if file else _USUAL_WEIGHTS
        return PublishedFile(repository, tuple(dict.fromkeys(names)))


FAMILY: Family = _OpenClip()


def _open_towers(model_config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> tuple[Tower, Tower]:
    with torch.device("meta"):
        whole = _build(model_config)
    wanted = {name: tensor for name, tensor in whole.state_dict().items() if name not in _NOT_IN_A_TOWER}
    own_text = isinstance(whole, open_clip.CustomTextCLIP)
    if own_text and "text_projection" in tensors:  # an older way of storing such a model
        tensors = {_below_text(name): tensor for name, tensor in tensors.items()}
    check_shapes(wanted, {name: tensor for name, tensor in tensors.items() if name not in _NOT_IN_A_TOWER})
    image = {name.removeprefix("visual."): tensors[name] for name in wanted if name.startswith("visual.")}
    text = {
        name.removeprefix("text.") if own_text else f"clip.{name}": tensors[name]
        for name in wanted
        if not name.startswith("visual.")
    }
    return Tower(lambda: _build(model_config).visual, image), Tower(lambda: _text_tower(_build(model_config)), text)


def _build(model_config: Mapping[str, Any]) -> Any:
    """A whole open_clip model, uninitialised."""
    config = {key: value for key, value in model_config.items() if key not in _MODEL_ONLY}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    return kind(**config)


def _below_text(name: str) -> str:
    parts = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    return f"text.{name}" if name.startswith(parts) else name


def _text_tower(model: Any) -> nn.Module:
    return model.text if isinstance(model, open_clip.CustomTextCLIP) else _TextPart(model)


class _TextPart(nn.Module):
    """The text half of a CLIP."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        del clip.visual, clip.logit_scale
        clip.logit_bias = None
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.clip.encode_text(tokens)
        return embeddings


def _model_config(architecture: str | None, path: Path) -> Mapping[str, Any]:
    """How to build a named architecture, or the one that a checkpoint's folder describes."""
    own: Mapping[str, Any] = {}
    if architecture is None or (path / _CONFIG_FILE).is_file():
        own = _read_config(path)["model_cfg"]
        _check_model(path / _CONFIG_FILE, own)
    if architecture is None:
        return own
    named = _named_config(architecture)
    _check_model(f"open_clip's {architecture}", named)
    if own:
        _check_same(path / _CONFIG_FILE, own, architecture, named)
    return named


def _check_same(where: Path, own: Mapping[str, Any], architecture: str, named: Mapping[str, Any]) -> None:
    """Heads, activations, pooling and the like differ without a trace in the weights' shapes."""
    theirs = _effective(named)
    for key, value in _effective(own).items():
        if value != theirs[key]:
            raise CheckpointError(
                f"{where}: {key} is {value!r}, {architecture} has {theirs[key]!r}; name the architecture of this "
                "checkpoint, or none"
            )


def _effective(model: Mapping[str, Any]) -> dict[str, Any]:
    """What towers are built from, open_clip's defaults included."""
    settings = {"model_cfg.embed_dim": model["embed_dim"]}
    settings |= {f"model_cfg.{key}": bool(model.get(key, False)) for key in ("quick_gelu", "custom_text")}
    for section, kind, skipped in (
        ("vision_cfg", CLIPVisionCfg, _INERT_VISION | _VISION_ONLY.keys()),
        ("text_cfg", CLIPTextCfg, _INERT_TEXT | _TEXT_ONLY.keys()),
    ):
        whole = asdict(kind(**model[section]))
        settings |= {f"{section}.{key}": value for key, value in whole.items() if key not in skipped}
    return settings | {"vision_cfg.image_size": _image_size(model["vision_cfg"])}


def _named_config(architecture: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        raise CheckpointError(f'open_clip has no architecture "{architecture}"; open_clip.list_models() lists them')
    return config


def _check_model(where: Path | str, model: Any) -> None:
    try:
        check_config("model_cfg", model, _MODEL_KEYS, _MODEL_ONLY)
        for key in ("embed_dim", "vision_cfg", "text_cfg"):
            if key not in model:
                raise CheckpointError(f"model_cfg.{key} is missing; an open_clip config has it")
        check_config("vision_cfg", model["vision_cfg"], _VISION_KEYS, _VISION_ONLY)
        check_config("text_cfg", model["text_cfg"], _TEXT_KEYS, _TEXT_ONLY)
        _image_size(model["vision_cfg"])
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _image_size(vision: Mapping[str, Any]) -> int:
    size = vision.get("image_size", 224)  # open_clip's own default
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if height != width or not isinstance(height, int):
        raise CheckpointError(f"vision_cfg.image_size is {size!r}; a repository resizes images to squares")
    return height


def _preprocessing(encoder: EncoderSpec, path: Path) -> Mapping[str, Any]:
    """What a checkpoint's own folder, or open_clip for one of its tags, says of the preprocessing."""
    where: Path | str = path / _CONFIG_FILE
    is_downloaded = path.name != encoder.checkpoint  # a tag's file has another name than the tag
    config: Any = {}
    if encoder.architecture is None or (path / _CONFIG_FILE).is_file():
        config = _read_config(path).get("preprocess_cfg", {})
    elif _is_tag(encoder.checkpoint) and (is_downloaded or not path.exists()):
        where, config = f'checkpoint "{encoder.checkpoint}"', _tag_config(encoder.architecture, encoder.checkpoint)
        _check_activation(encoder.architecture, encoder.checkpoint, config)
    try:
        check_config("preprocess_cfg", config, _PREPROCESSING_KEYS, _PREPROCESSING_ONLY)
        for key in ("mean", "std"):
            _channels(config, key, OPENAI_DATASET_MEAN)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    preprocessing: Mapping[str, Any] = config
    return preprocessing


def _channels(preprocessing: Mapping[str, Any], key: str, default: Sequence[float]) -> tuple[float, float, float]:
    values = preprocessing.get(key, default)
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"preprocess_cfg.{key} is {values!r}; it must be three numbers, for RGB") from error
    return red, green, blue


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise CheckpointError(f'{folder} is a file and does not say how the model is built: name its "architecture"')
    path = folder / _CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as an open_clip config: {error}") from error
    if "model_cfg" not in config:
        raise CheckpointError(f'{path}: key "model_cfg" is missing; an open_clip config has it')
    return config


def _is_tag(checkpoint: str) -> bool:
    return re.fullmatch(r"[\w-]+", checkpoint) is not None


def _tag_config(architecture: str, tag: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise CheckpointError(f'open_clip has no checkpoint "{tag}" of {architecture}; it has: {known}')
    return config


def _check_activation(architecture: str, tag: str, config: Mapping[str, Any]) -> None:
    quick_gelu = bool(_named_config(architecture).get("quick_gelu", False))
    if bool(config.get("quick_gelu", False)) != quick_gelu:
        right = architecture.removesuffix("-quickgelu") if quick_gelu else f"{architecture}-quickgelu"
        raise CheckpointError(
            f'checkpoint "{tag}" was not trained with the activation of {architecture}; the architecture is {right}'
        )
