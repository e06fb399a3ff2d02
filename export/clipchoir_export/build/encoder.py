"""One encoder of a build: its graph written, its prompts embedded, its agreement with the checkpoint proved."""

import hashlib
import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TaskID
from safetensors.numpy import load_file, save

import clipchoir_export
from clipchoir_export import costs
from clipchoir_export.build.staging import Staging
from clipchoir_export.build.verification import Evidence, VerifyLevel, batches_for, verify_image_encoder
from clipchoir_export.errors import RepositoryError, VerificationError
from clipchoir_export.families.registry import Encoder
from clipchoir_export.onnx.files import Written, weight_bytes, write_model
from clipchoir_export.onnx.graph import OPSETS, Signature, trace
from clipchoir_export.onnx.modules import ServedImageEncoder, ServedTextEncoder
from clipchoir_export.spec import EncoderSpec, Precision
from clipchoir_export.text import distinct_prompts, embed_prompts
from clipchoir_steps import atomic
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.tokenizer import CONTEXT_LENGTH, PromptTokenizer
from clipchoir_steps.layout import ENSEMBLING, label_set_file, newest, next_version, read_manifest, text_model
from clipchoir_steps.scoring.formula import class_embeddings

IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"
EVIDENCE = "verification.safetensors"
_KEPT_EVIDENCE = 8  # images
_WRITTEN = ".written.json"
_PROMPTS = "embeddings.safetensors"
_VERIFICATION = "verification.json"
_TOOLS = ("torch", "timm", "open_clip", "onnx", "onnx_ir", "onnxscript", "onnxruntime")

Key = dict[str, Any]


@dataclass(frozen=True)
class BuildOptions:
    """How to build, as opposed to what.

    Attributes:
        verify: how thoroughly.
        link_weights: leave weights in the checkpoint's own files where they fit.
        text_encoders: make the text towers models of the repository as well.
        offline: download nothing.
    """

    verify: VerifyLevel = "sample"
    link_weights: bool = False
    text_encoders: bool = False
    offline: bool = False

    def links(self, spec: EncoderSpec) -> bool:
        """Whether this encoder's weights may stay in the checkpoint. No checkpoint has the integers."""
        return self.link_weights and spec.precision != "int8"


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model: one that the repository has, or one that is staged for it."""

    model: str
    version: str
    staged: str | None  # name of the step that holds it; None: it is there already
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class BuiltEncoder:
    """What a repository needs of an encoder."""

    fingerprint: str
    embeddings: Mapping[str, NDArray[np.float32]]  # of prompts, by label set: (P, D)
    models: Sequence[ModelVersion]  # the image encoder, and the text encoder where it is wanted


class EncoderBuild:
    """The steps of one encoder. Each is skipped where an earlier build left it finished."""

    def __init__(
        self,
        spec: EncoderSpec,
        encoder: Encoder,
        target: Path,
        staging: Staging,
        options: BuildOptions,
        progress: Progress,
    ) -> None:
        self.spec = spec
        self.encoder = encoder
        self.target = target
        self.staging = staging
        self.options = options
        self.progress = progress
        self._key: Key = {
            **build_tools(),
            "encoder": spec.model_dump(mode="json", exclude={"weight", "licence", "imagenet_top1"}),
            "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in encoder.files],
            "link_weights": options.link_weights,
        }

    def run(self, label_sets: Sequence[LabelSet], tokenizer: PromptTokenizer) -> BuiltEncoder:
        """Do what is left to do.

        Raises:
            CheckpointError: a weight cannot be read or written in this precision.
            VerificationError: the graph does not compute what the checkpoint computes.
            OSError: the staging folder cannot be written.
        """
        name = self.spec.name
        published = {
            model: self._published(model, key)
            for model, key in ((name, self._image_key), (text_model(name), self._key))
        }
        if not published[name]:
            self._write_image_encoder()
        wants_text = self.options.text_encoders or bool(newest(self.target / text_model(name)))
        if wants_text and not published[text_model(name)]:
            self._write_text_encoder()
        known = published[name] or published[text_model(name)]
        embeddings = self._published_embeddings(label_sets, known.manifest["fingerprint"]) if known else None
        embeddings = embeddings or self._embed(label_sets, tokenizer)
        fingerprint = known.manifest["fingerprint"] if known else self._fingerprint()
        image = published[name] or self._finish_image_encoder(label_sets[0], embeddings, fingerprint)
        models = [image]
        if wants_text:
            models.append(published[text_model(name)] or self._finish_text_encoder(fingerprint))
        return BuiltEncoder(fingerprint, embeddings, models)

    @property
    def _image_key(self) -> Key:
        return {**self._key, "verify": self.options.verify}

    def _published(self, model: str, key: Key) -> ModelVersion | None:
        folder = newest(self.target / model)
        manifest = read_manifest(folder)
        if folder is None or manifest.get("key") != digest(key):
            return None
        return ModelVersion(model, folder.name, None, manifest)

    def _write_image_encoder(self) -> Path:
        return self.staging.step(self.spec.name, self._key, self._make_image_encoder)

    def _make_image_encoder(self, folder: Path) -> None:
        architecture = self.encoder.architecture
        module = ServedImageEncoder(self.encoder.image.skeleton(), architecture, self.spec.sharpness)
        size = architecture.image_size
        signature = Signature("pixels", (size, size, 3), torch.uint8)
        self._write_graph(
            folder, module, self.encoder.image.weights, signature, self.spec.precision, self.options.links(self.spec)
        )

    def _write_text_encoder(self) -> Path:
        return self.staging.step(text_model(self.spec.name), self._key, self._make_text_encoder)

    def _make_text_encoder(self, folder: Path) -> None:
        module = ServedTextEncoder(self.encoder.text.skeleton())
        signature = Signature("tokens", (CONTEXT_LENGTH,), torch.int64)
        self._write_graph(folder, module, self.encoder.text.weights, signature, self.spec.text_precision, link=False)

    def _write_graph(
        self,
        folder: Path,
        module: torch.nn.Module,
        weights: Mapping[str, Any],
        signature: Signature,
        precision: Precision,
        link: bool,
    ) -> None:
        task = self._task(f"{folder.name}: write weights", "bytes", None)
        model = trace(module, signature, weights, precision, self.spec.dialect, keep_layout=link)
        needed, free = weight_bytes(model), shutil.disk_usage(folder).free
        if needed > free and not link:
            raise RepositoryError(
                f"{self.target.parent} has {free / 1e9:.1f} GB left, {folder.name} needs {needed / 1e9:.1f} GB; make "
                "room, name another --repository, or use --link-weights where the checkpoint is on the same disk"
            )
        self.progress.update(task, total=needed)
        written = write_model(model, folder, partial(self.progress.advance, task), link)
        if written.not_linked:
            self.progress.console.print(
                f"{folder.name}: weights were copied: {written.not_linked}",
                style="yellow",
                soft_wrap=True,
                highlight=False,
            )
        atomic.write_text(folder / _WRITTEN, json.dumps(asdict(written)))

    def _embed(self, label_sets: Sequence[LabelSet], tokenizer: PromptTokenizer) -> Mapping[str, NDArray[np.float32]]:
        prompts = [[each.name, each.prompts()] for each in label_sets]

        def make(folder: Path) -> None:
            task = self._task(f"{self.spec.name}: embed prompts", "prompts", len(distinct_prompts(label_sets)))
            embeddings = embed_prompts(label_sets, self.encoder.text, tokenizer, partial(self.progress.advance, task))
            atomic.write_bytes(folder / _PROMPTS, save(embeddings))

        step = self.staging.step(f"{self.spec.name}.prompts", {**self._key, "prompts": prompts}, make)
        return load_file(step / _PROMPTS)

    def _published_embeddings(
        self, label_sets: Sequence[LabelSet], fingerprint: str
    ) -> Mapping[str, NDArray[np.float32]] | None:
        """The embeddings that the repository has, if they are of this very encoder and of all these prompts."""
        ensembling = newest(self.target / ENSEMBLING)
        if ensembling is None:
            return None
        found = {}
        for label_set in label_sets:
            try:
                stored = EmbeddedLabelSet.load(
                    label_set_file(ensembling, label_set.name), {self.spec.name: fingerprint}
                )
            except LabelSetFileError:
                return None
            if list(stored.prompts) != label_set.prompts():
                return None
            found[label_set.name] = stored.embeddings[self.spec.name]
        return found

    def _fingerprint(self) -> str:
        file = "fingerprint"

        def make(folder: Path) -> None:
            atomic.write_text(folder / file, self.encoder.fingerprint())

        return (self.staging.step(f"{self.spec.name}.{file}", self._key, make) / file).read_text(encoding="utf-8")

    def _finish_image_encoder(
        self, label_set: LabelSet, embeddings: Mapping[str, NDArray[np.float32]], fingerprint: str
    ) -> ModelVersion:
        name, folder = self.spec.name, self.staging.folder / self.spec.name
        verification = None
        if self.options.verify != "off":
            classifier = class_embeddings(embeddings[label_set.name], np.array(label_set.prompt_counts()))
            step = self.staging.step(
                f"{name}.verified", self._image_key | {"classes": label_set.classes}, partial(self._verify, classifier)
            )
            verification = json.loads((step / _VERIFICATION).read_text(encoding="utf-8"))
            atomic.write_bytes(folder / EVIDENCE, (step / EVIDENCE).read_bytes())
        architecture = self.encoder.architecture
        tower = self.encoder.image
        manifest = {
            "kind": IMAGE_ENCODER,
            **self._manifest(folder, self.spec.precision, fingerprint),
            "preprocessing": {
                "image_size": architecture.image_size,
                "resize": "squash, PIL bicubic",
                "sharpness": self.spec.sharpness,
                "mean": architecture.mean,
                "std": architecture.std,
            },
            "parameters": costs.parameters(tower),
            "flops_per_image": costs.flops_per_image(tower.skeleton(), architecture.image_size),
            "verification": verification,
            "key": digest(self._image_key),
        }
        return self._staged(name, manifest)

    def _verify(self, classifier: NDArray[np.float32], folder: Path) -> None:
        batches = batches_for(self.options.verify, costs.parameters(self.encoder.image))
        passes = 2 if self.spec.precision == "bf16" else 1
        task = self._task(f"{self.spec.name}: verify", "images", passes * max(batches) + sum(batches))
        model = self.staging.folder / self.spec.name
        try:
            result, evidence = verify_image_encoder(
                model,
                self.encoder.image,
                self.encoder.architecture,
                self.spec.sharpness,
                self.spec.precision,
                batches,
                classifier,
                partial(self.progress.advance, task),
            )
        except VerificationError:
            self.staging.discard(self.spec.name)
            raise
        atomic.write_text(folder / _VERIFICATION, json.dumps({"level": self.options.verify, **asdict(result)}))
        atomic.write_bytes(folder / EVIDENCE, _some(evidence))

    def _finish_text_encoder(self, fingerprint: str) -> ModelVersion:
        name = text_model(self.spec.name)
        manifest = {
            "kind": TEXT_ENCODER,
            **self._manifest(self.staging.folder / name, self.spec.text_precision, fingerprint),
            "context_length": CONTEXT_LENGTH,
            "parameters": costs.parameters(self.encoder.text),
            "key": digest(self._key),
        }
        return self._staged(name, manifest)

    def _manifest(self, folder: Path, precision: Precision, fingerprint: str) -> dict[str, Any]:
        written = Written(**json.loads((folder / _WRITTEN).read_text(encoding="utf-8")))
        return {
            "name": folder.name,
            "source": self.spec.source,
            "architecture": self.spec.architecture,
            "checkpoint": self.spec.checkpoint,
            "licence": self.spec.licence,
            "checkpoint_files": [{"name": path.name, "bytes": path.stat().st_size} for path in self.encoder.files],
            "fingerprint": fingerprint,
            "precision": precision,
            "dialect": self.spec.dialect,
            "opset": OPSETS[self.spec.dialect],
            "embedding_dim": self.encoder.architecture.embedding_dim,
            "weights": asdict(written),
            **build_tools(),
        }

    def _staged(self, model: str, manifest: Mapping[str, Any]) -> ModelVersion:
        return ModelVersion(model, next_version(self.target / model), model, manifest)

    def _task(self, description: str, unit: str, total: int | None) -> TaskID:
        return self.progress.add_task(description, total=total, unit=unit)


def digest(content: object) -> str:
    """Identity of what JSON can write, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def build_tools() -> Mapping[str, Any]:
    """What makes a build: the libraries' versions and this package's own code."""
    code = hashlib.sha256()
    package = Path(clipchoir_export.__file__).parent
    for path in sorted([*package.rglob("*.py"), *package.glob("templates/*")]):
        code.update(path.read_bytes())
    return {
        "tools": {tool: importlib.import_module(tool).__version__ for tool in _TOOLS},
        "code": code.hexdigest()[:16],
    }


def _some(evidence: Evidence) -> bytes:
    data: bytes = save({"pixels": evidence.pixels[:_KEPT_EVIDENCE], "embedding": evidence.embedding[:_KEPT_EVIDENCE]})
    return data
