"""What is served: the towers with everything around them that belongs into their graphs."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from clipchoir_export.families.towers import Architecture


class Sharpen(nn.Module):
    """PIL's `ImageEnhance.Sharpness(image).enhance(factor)`, bit for bit.

    PIL blends the image with a smoothed copy of itself (`ImageFilter.SMOOTH`: a 3x3 kernel, the outermost pixels
    copied) and cuts the result off to whole numbers. The blending stays in float32 and in this order: other orders
    round differently. What comes before it is exact in any order, and is the form of it that ONNX Runtime runs fastest;
    the kernel's whole numbers are exact in TF32 too, which GPUs use for convolutions.
    """

    kernel: Tensor
    rounding: Tensor
    inner: Tensor

    def __init__(self, factor: float, image_size: int) -> None:
        super().__init__()
        self.factor = factor
        smooth = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]])
        self.register_buffer("kernel", smooth.expand(3, 1, 3, 3).clone())
        self.register_buffer("rounding", torch.full((3,), 13 / 2))  # 13: the sum of the kernel
        self.register_buffer("inner", F.pad(torch.ones(image_size - 2, image_size - 2), (1, 1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers 0..255, float32 (N, 3, S, S) -> the same, sharpened."""
        smooth = torch.floor(F.conv2d(x, self.kernel, self.rounding, padding=1, groups=3) / 13.0)
        detail = (x - smooth) * self.inner  # the outermost pixels have none
        return torch.floor(torch.clamp((x - detail) + self.factor * detail, 0.0, 255.0))


class ServedImageEncoder(nn.Module):
    """The image encoder's `model.onnx`: uint8 (N, S, S, 3) -> float32 (N, D), rows of length 1.

    The tower runs in the type of its weights; sharpening, normalising and the last step to length 1 in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, architecture: Architecture, sharpness: float) -> None:
        super().__init__()
        self.tower = tower
        unchanged = sharpness == 1.0
        self.sharpen = nn.Identity() if unchanged else Sharpen(sharpness, architecture.image_size)
        self.register_buffer("mean", torch.tensor(architecture.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float().permute(0, 3, 1, 2)  # (N, 3, S, S); in this order: TensorRT cannot move bytes
        x = self.sharpen(x)
        x = (x / 255.0 - self.mean) / self.std
        x = x.to(next(self.tower.parameters()).dtype)
        return F.normalize(self.tower(x).float(), dim=-1)  # (N, D)


class ServedTextEncoder(nn.Module):
    """The text encoder's `model.onnx`: int64 (N, 77) token ids -> float32 (N, D), rows of length 1."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.tower(tokens).float(), dim=-1)  # (N, D)
