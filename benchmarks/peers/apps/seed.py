"""The seed's way: plain PyTorch, one model after the other, a DataLoader with worker processes, no server.

    python benchmarks/peers/apps/seed.py REPOSITORY BATCH DATALOADER_WORKERS

Each line of standard input has a number of images; the answer is a line of JSON. Images come as JPEGs from memory.
"""

import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT))

from benchmarks.common.in_process import draw, encoder_names
from clipchoir_export.families.registry import open_encoder
from clipchoir_export.spec import find_ensemble, load_ensemble
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.scoring.formula import score
from clipchoir_steps.scoring.options import SOFTMAX_MEAN, Scoring


class Images(Dataset):
    """Transformed as one encoder wants it: upright, RGB, squashed, sharpened, normalised."""

    def __init__(self, jpegs: Sequence[bytes], count: int, preprocessing: dict[str, Any]) -> None:
        self._jpegs, self._count = jpegs, count
        self._size, self._sharpness = preprocessing["image_size"], preprocessing["sharpness"]
        self._mean, self._std = (torch.tensor(preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(io.BytesIO(self._jpegs[index % len(self._jpegs)]))
        image = ImageOps.exif_transpose(image).convert("RGB")
        image = image.resize((self._size, self._size), Image.Resampling.BICUBIC)
        if self._sharpness != 1.0:
            image = ImageEnhance.Sharpness(image).enhance(self._sharpness)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std


class Seed:
    """Both encoders, in PyTorch."""

    def __init__(self, repository: Path, batch: int, workers: int) -> None:
        self._batch, self._workers = batch, workers
        self._jpegs = draw()
        newest = {path.parent.parent.name: path for path in sorted(repository.glob("*/[0-9]*/manifest.json"))}
        self._manifests = {name: json.loads(newest[name].read_text()) for name in encoder_names(repository)}
        self._encoders = {name: _encoder(name, manifest) for name, manifest in self._manifests.items()}
        folder = max((repository / "ensembling").glob("[0-9]*"), key=lambda path: int(path.name)) / "label_sets"
        fingerprints = {name: manifest["fingerprint"] for name, manifest in self._manifests.items()}
        self._label_set = EmbeddedLabelSet.load(min(folder.glob("*.safetensors")), fingerprints)

    def run(self, count: int) -> np.ndarray:
        """Class scores of so many images, (N, C)."""
        embeddings = []
        for name, encoder in self._encoders.items():
            images = Images(self._jpegs, count, self._manifests[name]["preprocessing"])
            loader = DataLoader(images, self._batch, num_workers=self._workers)
            with torch.inference_mode():
                parts = [normalize(encoder(batch), dim=-1) for batch in loader]
            embeddings.append(torch.cat(parts).numpy())
        texts = [self._label_set.texts(name, SOFTMAX_MEAN) for name in self._encoders]
        return score(embeddings, texts, Scoring((1.0,) * len(texts), 100.0, 0.0, SOFTMAX_MEAN)).ensemble


def _encoder(name: str, manifest: dict[str, Any]) -> nn.Module:
    """The checkpoint's own image tower; for random weights, those of the same seed."""
    if not manifest["architecture"]:
        path = find_ensemble("demo")
        (spec,) = [encoder for encoder in load_ensemble(path).encoders if encoder.name == name]
        return open_encoder(spec, path, offline=True).image.load().eval()
    torch.manual_seed(0)
    return open_clip.create_model(manifest["architecture"]).visual.eval()


def main() -> None:
    """Answer each line."""
    seed = Seed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        start = time.perf_counter()
        scores = seed.run(int(line))
        seconds = time.perf_counter() - start
        print(json.dumps({"images_per_second": int(line) / seconds, "scores": scores[:32].tolist()}), flush=True)


if __name__ == "__main__":
    main()
