"""Small random checkpoints in the layouts that the loaders read."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipchoir_export.families.eva_clip import (
    EvaClipConfig,
    TowerConfig,
    build_image_tower,
    build_text_tower,
    to_hugging_face,
)

OPEN_CLIP_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_open_clip(folder: Path, seed: int = 0) -> Path:
    """A random open_clip checkpoint, as on the model hub."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**OPEN_CLIP_CONFIG)
    _randomise(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_eva_clip(folder: Path, seed: int = 0, post_norm: bool = True, image_size: int = 224) -> Path:
    """A random EVA-CLIP checkpoint in the Hugging Face layout."""
    torch.manual_seed(seed)
    image, text = TowerConfig(32, 2, 2, 160), TowerConfig(32, 2, 2, 128)
    config = EvaClipConfig(image, text, embedding_dim=16, post_norm=post_norm, image_size=image_size, patch_size=28)
    image_tower, text_tower = build_image_tower(config), build_text_tower(config)
    _randomise(image_tower)
    _randomise(text_tower)
    tensors = to_hugging_face(image_tower.state_dict(), text_tower.state_dict(), torch.tensor(4.6), config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_hugging_face_config(config)))
    return folder


def change(path: Path, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Change one tensor of a safetensors file."""
    tensors = load_file(path)
    tensors[name] = how(tensors[name])
    save_file(tensors, path)


def _hugging_face_config(config: EvaClipConfig) -> dict[str, object]:
    def tower(size: TowerConfig) -> dict[str, object]:
        return {
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "intermediate_size": size.mlp_width,
        }

    return {
        "projection_dim": config.embedding_dim,
        "vision_config": {
            **tower(config.image),
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": config.image_eps,
            "post_layernorm": config.post_norm,
            "use_rms_norm": True,
        },
        "text_config": tower(config.text),
    }


def _randomise(module: nn.Module) -> None:
    """Weights such that every layer changes the answer, and rounding does not."""
    for parameter in module.parameters():
        with torch.no_grad():
            if parameter.ndim < 2:
                parameter.normal_(0.5, 0.2)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
