"""What a repository has beside its encoders: Python steps, label sets and configs, laid out where they are new."""

import contextlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipchoir_export.build.encoder import ModelVersion, digest
from clipchoir_export.build.steps import copy_step, holds_step
from clipchoir_export.configs import Identity, render_configs
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import EnsembleSpec
from clipchoir_steps import atomic
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.layout import (
    ENSEMBLING,
    LABEL_SETS,
    PREPROCESS,
    RECIPE,
    TOKENIZER,
    ZERO_SHOT,
    added_label_sets,
    label_set_file,
    label_sets_folder,
    newest,
    next_version,
    read_manifest,
    to_json,
    versions,
    write_manifest,
)
from clipchoir_steps.preprocess.probe import pixels_digest


@dataclass(frozen=True)
class Assembly:
    """All that follows from a spec once its encoders are known.

    Attributes:
        spec: what to serve.
        architectures: by encoder name, in the spec's order.
        encoders: the image encoders.
        text_encoders: names of the encoders whose text towers are models of the repository, too.
        label_sets: of the spec, by name.
        tokenizer: its file.
        target: the repository as it is; it may not exist so far.
    """

    spec: EnsembleSpec
    architectures: Mapping[str, Architecture]
    encoders: Mapping[str, ModelVersion]
    text_encoders: Collection[str]
    label_sets: Mapping[str, EmbeddedLabelSet]
    tokenizer: Path
    target: Path

    def lay_out(self, tree: Path) -> None:
        """Write what the target lacks: new version folders, and files of models that differ."""
        for path, text in self._model_files().items():
            if not _holds(self.target / path, text):
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                atomic.write_text(tree / path, text)
        if not (self.target / ENSEMBLING / self._version).exists():
            self._make_ensembling(tree / ENSEMBLING / self._version)
        for step in (PREPROCESS, LABEL_SETS):
            current = newest(self.target / step)
            if current is None or not holds_step(step, current):
                copy_step(step, tree / step / next_version(self.target / step))
        if newest(self.target / ZERO_SHOT) is None:
            (tree / ZERO_SHOT / "1").mkdir(parents=True)

    @cached_property
    def _identities(self) -> dict[str, dict[str, str]]:
        scaled = self.spec.serving.jpeg_scaled_decoding
        return {name: _identity(model.manifest, scaled) for name, model in self.encoders.items()}

    @cached_property
    def _key(self) -> str:
        """Identity of all that a version of `ensembling` depends on, but for its Python."""
        label_sets = [
            [name, each.classes, each.prompts, each.prompt_counts.tolist()] for name, each in self.label_sets.items()
        ]
        tools = {name: [model.manifest["tools"], model.manifest.get("code")] for name, model in self.encoders.items()}
        return digest([self.spec.model_dump(mode="json", exclude={"serving"}), self._identities, label_sets, tools])

    @cached_property
    def _version(self) -> str:
        """Name of the version of `ensembling` with this content: the current one, or the next."""
        current = newest(self.target / ENSEMBLING)
        if current and read_manifest(current).get("key") == self._key and holds_step(ENSEMBLING, current):
            return current.name
        return next_version(self.target / ENSEMBLING)

    @property
    def _repository_version(self) -> str:
        return self._key[:12]

    def _model_files(self) -> dict[Path, str]:
        """Every config, and what they were rendered from."""
        ensembling = self.target / ENSEMBLING
        known = {str(number): _encoders_of(ensembling / str(number)) for number in versions(ensembling)}
        identity = Identity(known | {self._version: self._identities}, self._repository_version)
        recipe = {
            "repository_version": self._repository_version,
            "spec": self.spec.model_dump(mode="json"),
            "architectures": {name: asdict(each) for name, each in self.architectures.items()},
        }
        configs = render_configs(self.spec, self.architectures, identity, self.text_encoders)
        return {**configs, Path(ENSEMBLING) / RECIPE: to_json(recipe)}

    def _make_ensembling(self, folder: Path) -> None:
        copy_step(ENSEMBLING, folder)
        shutil.copyfile(self.tokenizer, folder / TOKENIZER)
        label_sets_folder(folder).mkdir()
        for name, label_set in self.label_sets.items():
            label_set.save(label_set_file(folder, name))
        self._keep_added_label_sets(folder)
        manifest = {
            "kind": ENSEMBLING,
            "encoders": {
                name: {"version": model.version, **self._identities[name]} for name, model in self.encoders.items()
            },
            "label_sets": list(self.label_sets),
            "repository_version": self._repository_version,
            "key": self._key,
        }
        write_manifest(folder, manifest)

    def _keep_added_label_sets(self, folder: Path) -> None:
        """Take over the label sets that were added to the current version since it was built, where they still fit."""
        current = newest(self.target / ENSEMBLING)
        if current is None:
            return
        fingerprints = {name: each["fingerprint"] for name, each in self._identities.items()}
        for name, path in added_label_sets(current, read_manifest(current).get("label_sets", [])).items():
            with contextlib.suppress(LabelSetFileError):
                EmbeddedLabelSet.load(path, fingerprints)
                if name not in self.label_sets:
                    shutil.copyfile(path, label_set_file(folder, name))


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_bytes() == text.encode()


def _encoders_of(ensembling: Path) -> Mapping[str, Mapping[str, str]]:
    """What a version of `ensembling` says of the encoders that it belongs to."""
    encoders: Mapping[str, Mapping[str, str]] = read_manifest(ensembling).get("encoders", {})
    return encoders


def _identity(manifest: Mapping[str, Any], scaled_decoding: bool) -> dict[str, str]:
    """Which checkpoint an image encoder is of, and which images it gives the same embeddings for."""
    preprocessing, precision = manifest["preprocessing"], manifest["precision"]
    pixels = pixels_digest(preprocessing["image_size"], scaled_decoding)
    embedding_id = digest([manifest["fingerprint"], preprocessing, precision, pixels])[:16]
    return {"fingerprint": manifest["fingerprint"], "embedding_id": embedding_id}
