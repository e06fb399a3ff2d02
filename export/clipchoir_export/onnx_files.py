"""Image encoder -> `model.onnx`, and the proof that it computes what the PyTorch original computes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import nn

from clipchoir_export.errors import VerificationError
from clipchoir_export.image_graph import ServedImageEncoder
from clipchoir_export.towers import Architecture

INPUT, OUTPUT = "pixels", "embedding"
OPSET = 18  # the portable dialect: any onnxruntime since 1.19 runs it
VERIFIED_BATCHES = (1, 2, 5, 32)
TOLERANCE = 2e-5  # largest difference of one component of two unit-length float32 embeddings


@dataclass(frozen=True)
class Verification:
    """How far an exported encoder is from its original on random images."""

    batches: Sequence[int]
    max_difference: float
    tolerance: float
    min_cosine: float


def write_image_encoder(tower: nn.Module, architecture: Architecture, sharpness: float, path: Path) -> None:
    """Export to ONNX: uint8 `pixels` (batch, S, S, 3) -> float32 `embedding` (batch, D)."""
    module = ServedImageEncoder(tower, architecture, sharpness).eval()
    # An example batch of 1 would fix the batch size, silently.
    example = torch.zeros(2, architecture.image_size, architecture.image_size, 3, dtype=torch.uint8)
    with _quietly():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise VerificationError(f"{path}: torch.onnx.export returned no program")
    program.save(path)


def verify_image_encoder(
    path: Path, tower: nn.Module, architecture: Architecture, sharpness: float, seed: int = 0
) -> Verification:
    """Compare `model.onnx` with PIL's sharpening and the tower's own forward on random images.

    Raises:
        VerificationError: an embedding differs by more than the tolerance.
    """
    session = open_session(path)
    random = np.random.default_rng(seed)
    differences, cosines = [], []
    for batch in VERIFIED_BATCHES:
        pixels = random.integers(0, 256, (batch, architecture.image_size, architecture.image_size, 3), np.uint8)
        expected = reference_embeddings(tower, architecture, sharpness, pixels)  # (N, D)
        (actual,) = session.run([OUTPUT], {INPUT: pixels})
        differences.append(float(np.abs(actual - expected).max()))
        cosines.append(float((actual * expected).sum(axis=1).min()))
    result = Verification(VERIFIED_BATCHES, max(differences), TOLERANCE, min(cosines))
    if not result.max_difference <= TOLERANCE:  # NaN must fail as well
        raise VerificationError(
            f"{path}: differs from its PyTorch original by {result.max_difference:.2g}, allowed is {TOLERANCE:.0e}; "
            "nothing was published"
        )
    return result


def reference_embeddings(
    tower: nn.Module, architecture: Architecture, sharpness: float, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The plain way: PIL sharpens each image, torch normalises and encodes. (N, S, S, 3) -> (N, D)."""
    sharpened = [np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(sharpness)) for image in pixels]
    x = torch.from_numpy(np.stack(sharpened)).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S)
    x = (x - torch.tensor(architecture.mean).view(3, 1, 1)) / torch.tensor(architecture.std).view(3, 1, 1)
    with torch.inference_mode():
        embeddings: NDArray[np.float32] = F.normalize(tower(x), dim=-1).numpy()
    return embeddings


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, at the optimisation level that the repository asks for."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quietly():  # type: ignore[no-untyped-def]
    """The exporter prints its steps and warns of its own future; neither helps a user."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
