"""What all peers share: encoded images -> class scores, from a repository's own ONNX files and label set.

The frameworks around it are the peers; this is what a careful author would write for each of them. A row that cannot be
decoded has an error, and the other rows are answered.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

sys.path.append(str(Path(__file__).parents[3] / "steps"))

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.scoring.formula import score
from clipchoir_steps.scoring.options import SOFTMAX_MEAN, Scoring

SETTINGS = "PEER_SETTINGS"  # environment variable, JSON


@dataclass(frozen=True)
class Settings:
    """How a peer uses the cores.

    Attributes:
        repository: built by clipchoir-export.
        workers: processes.
        threads: requests, or batches, that one process works on at a time.
        session_threads: of each encoder's ONNX Runtime session.
        spinning: whether a session's threads without work wait by spinning.
        side_by_side: whether a batch's encoders run at the same time, and its images are decoded on two threads.
        max_batch: that the framework forms; of requests with LitServe, of images with BentoML.
        wait: milliseconds for a batch to fill, with LitServe.
    """

    repository: str
    workers: int = 1
    threads: int = 1
    session_threads: int = 1
    spinning: bool = False
    side_by_side: bool = False
    max_batch: int = 1
    wait: float = 0.0

    @classmethod
    def read(cls) -> "Settings":
        """From the environment."""
        return cls(**json.loads(os.environ[SETTINGS]))


@dataclass(frozen=True)
class Answer:
    """Of N images: labels, scores (N, C), and an empty string or what is wrong with each."""

    labels: list[str]
    scores: np.ndarray
    errors: list[str]

    def json(self) -> bytes:
        """A row with an error has null for its scores."""
        scores = [None if error else row for row, error in zip(self.scores.tolist(), self.errors, strict=True)]
        return json.dumps({"labels": self.labels, "scores": scores, "errors": self.errors}).encode()

    def split(self, sizes: Sequence[int]) -> "list[Answer]":
        """One for each request of a batch."""
        ends = list(accumulate(sizes))
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        return [Answer(self.labels[part], self.scores[part], self.errors[part]) for part in parts]


class Pipeline:
    """Decodes, encodes with every encoder, and scores. Can be called from several threads."""

    def __init__(self, settings: Settings) -> None:
        repository = Path(settings.repository)
        manifests = {path.parent.parent.name: path for path in sorted(repository.glob("*/[0-9]*/manifest.json"))}
        marker = 'key: "encoders" value { string_value: "'
        config = (repository / "zero_shot" / "config.pbtxt").read_text()
        names = config.partition(marker)[2].partition('"')[0].split(",")
        self._sessions = [_open(manifests[name].parent / "model.onnx", settings) for name in names]
        self._size = self._sessions[0].get_inputs()[0].shape[1]
        folder = max((repository / "ensembling").glob("[0-9]*"), key=lambda path: int(path.name)) / "label_sets"
        fingerprints = {name: json.loads(manifests[name].read_text())["fingerprint"] for name in names}
        label_set = EmbeddedLabelSet.load(min(folder.glob("*.safetensors")), fingerprints)
        self._classes = label_set.classes
        self._texts = [label_set.texts(name, SOFTMAX_MEAN) for name in names]
        self._scoring = Scoring((1.0,) * len(names), 100.0, 0.0, SOFTMAX_MEAN)
        self._helpers = ThreadPoolExecutor(2 * settings.threads) if settings.side_by_side else None
        self([_black()])

    def __call__(self, images: Sequence[bytes]) -> Answer:
        """Encoded images -> their scores."""
        pixels = np.zeros((len(images), self._size, self._size, 3), np.uint8)
        errors = [""] * len(images)

        def decode(rows: range) -> None:
            for row in rows:
                try:
                    pixels[row] = _pixels(images[row], self._size)
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    errors[row] = str(error) or "it cannot be decoded"

        inputs = {"pixels": pixels}
        if self._helpers is None or len(images) == 1:
            decode(range(len(images)))
        else:
            list(self._helpers.map(decode, [range(start, len(images), 2) for start in range(2)]))
        if self._helpers is None:
            embeddings = [session.run(["embedding"], inputs)[0] for session in self._sessions]
        else:
            running = [self._helpers.submit(each.run, ["embedding"], inputs) for each in self._sessions[1:]]
            embeddings = [self._sessions[0].run(["embedding"], inputs)[0], *(each.result()[0] for each in running)]
        found = score(embeddings, self._texts, self._scoring)
        labels = ["" if error else self._classes[best] for best, error in zip(found.best, errors, strict=True)]
        return Answer(labels, found.ensemble, errors)


def rows(body: bytes) -> list[bytes]:
    """The images of a request's body: four bytes of length, little endian, before each.

    Raises:
        ValueError: the lengths do not fit the body.
    """
    images, position = [], 0
    while position < len(body):
        start = position + 4
        position = start + int.from_bytes(body[position:start], "little")
        if position > len(body):
            raise ValueError("an image is longer than the rest of the body")
        images.append(body[start:position])
    return images


def _pixels(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))


def _open(path: Path, settings: Settings) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.session_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _black() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG")
    return file.getvalue()
