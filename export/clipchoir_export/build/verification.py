"""The proof that a `model.onnx` computes what its checkpoint computes."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import nn

from clipchoir_export.errors import VerificationError
from clipchoir_export.families.towers import Architecture, Tower
from clipchoir_export.onnx.files import open_session
from clipchoir_export.spec import Precision
from clipchoir_steps.layout import MODEL

VerifyLevel = Literal["full", "sample", "off"]
MIN_COSINE: Mapping[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.99}
MAX_DIFFERENCE = 2e-5  # of one component of two unit-length embeddings, where both were computed in float32
# Two classes whose similarities to an image differ by less may change places.
OWN_ERROR: Mapping[Precision, float] = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2, "int8": 2e-2}
# Two images whose embeddings are less far apart (1 - cosine) may be taken for each other.
_TOO_ALIKE: Mapping[Precision, float] = {"fp32": 1e-6, "fp16": 1e-4, "bf16": 1e-3, "int8": 1e-2}
FULL_BATCHES, SAMPLE_BATCHES = (1, 2, 5, 32), (1, 4)
_SMALL = 100_000_000  # parameters; up to here a sample is as thorough as a full check, and takes seconds
_TOGETHER = 8  # images in one streamed pass over the weights

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Verification:
    """How far an exported encoder is from its checkpoint, computed by PyTorch in float32.

    Attributes:
        images: how many were compared.
        batches: sizes of the batches that ONNX Runtime was given.
        arithmetic: "as stored", or "widened to float32" where the runtime at hand cannot compute in the graph's type.
        min_cosine: between an embedding and the original's, over all images and batches.
        bar: what it had to reach.
        max_difference: of one component.
        mistaken: images whose embedding is nearer to the original's of another, clearly different image.
        top1_decided: images whose best class leads by more than the precision's own error.
        top1_agreed: how many of these have the same best class in both.
    """

    images: int
    batches: Sequence[int]
    arithmetic: str
    min_cosine: float
    bar: float
    max_difference: float
    mistaken: int
    top1_decided: int
    top1_agreed: int


@dataclass(frozen=True)
class Evidence:
    """Test images and what the original makes of them.

    Attributes:
        pixels: uint8 (N, S, S, 3).
        embedding: float32 (N, D), rows of length 1.
    """

    pixels: NDArray[np.uint8]
    embedding: Floats


def batches_for(level: VerifyLevel, parameters: int) -> Sequence[int]:
    """Which batch sizes to compare; the largest is the number of images."""
    return FULL_BATCHES if level == "full" or parameters <= _SMALL else SAMPLE_BATCHES


def verify_image_encoder(
    folder: Path,
    tower: Tower,
    architecture: Architecture,
    sharpness: float,
    precision: Precision,
    batches: Sequence[int],
    classifier: Floats,
    advance: Callable[[int], None],
) -> tuple[Verification, Evidence]:
    """Compare `model.onnx` in a folder with PIL's sharpening and the tower's own forward pass.

    Args:
        folder: of the model.
        tower: its original; streamed, so that it never is in memory as a whole.
        architecture: of the encoder.
        sharpness: that the graph should apply.
        precision: of the graph.
        batches: sizes to try.
        classifier: (C, D) one text embedding per class, to compare the best classes.
        advance: called with the number of images that either side has encoded since its last call.

    Raises:
        VerificationError: below the bar; the message has the figures.
    """
    pixels = sample_images(max(batches), architecture.image_size)
    expected = _reference(tower, architecture, sharpness, pixels, torch.float32, advance)  # (N, D)
    pairs = []
    with _runnable(folder, precision) as path:
        session = open_session(path)
        for batch in batches:
            (actual,) = session.run(None, {session.get_inputs()[0].name: pixels[:batch]})
            pairs.append((actual, expected[:batch]))
            advance(batch)
    if precision == "bf16":  # the runtime was given float32 arithmetic: let PyTorch show what bfloat16 costs
        pairs.append((_reference(tower, architecture, sharpness, pixels, torch.bfloat16, advance), expected))
    result = _compare(pairs, expected, precision, batches, classifier)
    _check(result, precision, folder / MODEL)
    return result, Evidence(pixels, expected)


def _compare(
    pairs: Sequence[tuple[Floats, Floats]],
    expected: Floats,
    precision: Precision,
    batches: Sequence[int],
    classifier: Floats,
) -> Verification:
    decided = agreed = mistaken = 0
    alike = 1 - expected.astype(np.float64) @ expected.T.astype(np.float64) < _TOO_ALIKE[precision]  # (N, N)
    for actual, original in pairs:
        to_all = actual.astype(np.float64) @ expected.T.astype(np.float64)  # (n, N)
        to_others = np.where(alike[: len(actual)], -np.inf, to_all)
        mistaken += int((to_others.max(axis=1) >= np.diagonal(to_all)).sum())
        similarities = original @ classifier.T  # (N, C)
        ordered = np.sort(similarities, axis=1)
        clear = np.full(len(original), len(classifier) > 1)
        if len(classifier) > 1:
            clear = ordered[:, -1] - ordered[:, -2] > OWN_ERROR[precision]
        same = (actual @ classifier.T).argmax(1) == similarities.argmax(1)
        decided, agreed = decided + int(clear.sum()), agreed + int((clear & same).sum())
    return Verification(
        images=len(expected),
        batches=batches,
        arithmetic="widened to float32" if precision == "bf16" else "as stored",
        min_cosine=min(float((actual * original).sum(axis=1).min()) for actual, original in pairs),
        bar=MIN_COSINE[precision],
        max_difference=max(float(np.abs(actual - original).max()) for actual, original in pairs),
        mistaken=mistaken,
        top1_decided=decided,
        top1_agreed=agreed,
    )


def _check(result: Verification, precision: Precision, path: Path) -> None:
    problem = None
    if not result.min_cosine >= result.bar:  # NaN must fail as well
        problem = f"cosine {result.min_cosine:.6f}, needed is {result.bar}"
    elif precision == "fp32" and not result.max_difference <= MAX_DIFFERENCE:
        problem = f"a component is off by {result.max_difference:.2g}, allowed is {MAX_DIFFERENCE:.0e}"
    elif result.mistaken:
        problem = f"{result.mistaken} embeddings are nearer to another image's"
    elif result.top1_agreed < result.top1_decided:
        problem = f"another best class for {result.top1_decided - result.top1_agreed} of {result.top1_decided} images"
    if problem:
        advice = "" if precision == "fp32" else "; try bf16 or fp32" if precision == "fp16" else "; try fp32"
        raise VerificationError(f"{path}: differs from its PyTorch original: {problem}{advice}; nothing was published")


def _reference(
    tower: Tower,
    architecture: Architecture,
    sharpness: float,
    pixels: NDArray[np.uint8],
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> Floats:
    parts = []
    with tower.streamed(dtype) as encode:
        for start in range(0, len(pixels), _TOGETHER):
            some = pixels[start : start + _TOGETHER]
            parts.append(reference_embeddings(encode, architecture, sharpness, some, dtype))
            advance(len(some))
    return np.concatenate(parts)


def reference_embeddings(
    encode: nn.Module,
    architecture: Architecture,
    sharpness: float,
    pixels: NDArray[np.uint8],
    dtype: torch.dtype = torch.float32,
) -> Floats:
    """The plain way: PIL sharpens each image, torch normalises and encodes. (N, S, S, 3) -> (N, D)."""
    sharpened = [np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(sharpness)) for image in pixels]
    x = torch.from_numpy(np.stack(sharpened)).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S)
    x = (x - torch.tensor(architecture.mean).view(3, 1, 1)) / torch.tensor(architecture.std).view(3, 1, 1)
    with torch.inference_mode():
        embeddings: Floats = F.normalize(encode(x.to(dtype)).float(), dim=-1).numpy()
    return embeddings


def sample_images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures that differ much from each other: coarse and fine colours, smooth and noisy. (N, S, S, 3)."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        cells = int(random.integers(2, 24))
        coarse = random.integers(0, 256, (cells, cells, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        noise = random.normal(0, random.uniform(0, 60), (size, size, 3))
        images.append((smooth * random.uniform(0.3, 1) + noise).clip(0, 255).astype(np.uint8))
    return np.stack(images)


@contextlib.contextmanager
def _runnable(folder: Path, precision: Precision) -> Iterator[Path]:
    """The model as the CPU can run it. ONNX Runtime has next to no bfloat16 kernels there: such a graph is widened."""
    if precision != "bf16":
        yield folder / MODEL
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".widened.", suffix=".onnx") as file:
        ir.save(_widened(ir.load(folder / MODEL)), file.name)
        yield Path(file.name)


def _widened(model: ir.Model) -> ir.Model:
    """The same graph with its stored weights, computing in float32."""
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.BFLOAT16:
            widen = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            value.replace_all_uses_with(widen.outputs[0])
            widen.replace_input_with(0, value)
            model.graph.insert_before(model.graph[0], widen)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        for value in node.outputs:
            if value.dtype == ir.DataType.BFLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.BFLOAT16:
                wide = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
    return model
