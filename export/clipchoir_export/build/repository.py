"""Spec -> a complete Triton model repository, or a new version of its models."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

import clipchoir_steps
from clipchoir_export.build.encoder import (
    BuildOptions,
    BuiltEncoder,
    EncoderBuild,
    ModelVersion,
    build_tools,
    digest,
)
from clipchoir_export.build.publishing import holds_sources, publish
from clipchoir_export.build.staging import Staging
from clipchoir_export.configs import Identity, render_configs
from clipchoir_export.errors import RepositoryError
from clipchoir_export.families import registry as encoders
from clipchoir_export.families.towers import Architecture
from clipchoir_export.resources import resource
from clipchoir_export.spec import EnsembleSpec, load_label_set
from clipchoir_export.text import write_tokenizer
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.layout import (
    ENSEMBLING,
    ENTRY_POINT,
    LABEL_SETS,
    PREPROCESS,
    TOKENIZER,
    ZERO_SHOT,
    added_label_sets,
    check_format,
    is_repository,
    label_set_file,
    label_sets_folder,
    newest,
    next_version,
    read_manifest,
    versions,
    write_manifest,
)
from clipchoir_steps.preprocess.probe import pixels_digest

_TREE = "publish"


def build_repository(
    spec: EnsembleSpec, spec_path: Path, target: Path, progress: Progress, options: BuildOptions | None = None
) -> list[str]:
    """Build beside `target`, then put what is new in place: a failed build changes nothing.

    Where the target is a repository already, every model that changed gets a new version folder.

    Returns:
        The new versions, as `metaclip/2`.

    Raises:
        ExportError: of the kind that fits; see `clipchoir_export.errors`.
    """
    options = options or BuildOptions()
    target = target.resolve()
    _check_target(target)
    label_sets = [load_label_set(name, spec_path) for name in spec.label_sets]
    opened = {
        each.name: encoders.open_encoder(each, spec_path, options.offline, fused_qkv=not options.links(each))
        for each in spec.encoders
    }
    architectures = {name: encoder.architecture for name, encoder in opened.items()}
    _check_compatible(target, architectures)
    try:
        with Staging.beside(target) as staging:
            tokenizer_file = staging.folder / TOKENIZER
            write_tokenizer(tokenizer_file)
            tokenizer = PromptTokenizer(tokenizer_file)
            built = {
                each.name: EncoderBuild(each, opened[each.name], target, staging, options, progress).run(
                    label_sets, tokenizer
                )
                for each in spec.encoders
            }
            tree = staging.folder / _TREE
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            _assemble(spec, architectures, label_sets, built, tokenizer_file, staging, tree, target)
            new = [f"{model.name}/{number}" for model in sorted(tree.iterdir()) for number in versions(model)]
            publish(tree, target, last=(ENSEMBLING, ZERO_SHOT))
            return new
    except OSError as error:
        raise RepositoryError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error


def write_source(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    folder: Path,
) -> None:
    """Write the part of a repository that is source: every config, and the Python of its Python steps.

    Raises:
        OSError: a file cannot be written.
    """
    for path, content in render_configs(spec, architectures).items():
        model = path.parts[0]
        version = folder / model / "1"
        for needed in (version, (folder / path).parent):
            needed.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
        entry = _entry_point(model)
        copy = version / entry.name
        if not entry.is_file():
            (version / ".gitkeep").touch()  # Triton wants the folder, git keeps no empty one
        elif not (copy.exists() and copy.samefile(entry)):
            shutil.copyfile(entry, copy)


def _entry_point(step: str) -> Path:
    return resource("model_repository") / step / "1" / ENTRY_POINT


def step_sources(step: str) -> dict[str, Path]:
    """The Python of a step, by its path in the version folder: `model.py`, and beside it all of `clipchoir_steps`."""
    package = Path(clipchoir_steps.__file__).parent
    modules = {str(path.relative_to(package.parent)): path for path in sorted(package.rglob("*.py"))}
    return {ENTRY_POINT: _entry_point(step), **modules}


def _assemble(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    label_sets: Sequence[LabelSet],
    built: Mapping[str, BuiltEncoder],
    tokenizer_file: Path,
    staging: Staging,
    tree: Path,
    target: Path,
) -> None:
    """Lay out new version folders and every config, as they shall stand in the target."""
    fingerprints = {name: encoder.fingerprint for name, encoder in built.items()}
    label_content = [[each.name, each.classes, each.prompts(), each.prompt_counts()] for each in label_sets]
    image_encoders = {name: encoder.models[0] for name, encoder in built.items()}
    scaled = spec.serving.jpeg_scaled_decoding
    identities = {name: _identity(model, scaled) for name, model in image_encoders.items()}
    content = [spec.model_dump(mode="json", exclude={"serving"}), identities, label_content, build_tools()]
    version, is_new = _ensembling_version(target, digest(content))
    known = {number: _encoders_of(target / ENSEMBLING / number) for number in map(str, versions(target / ENSEMBLING))}
    identity = Identity(known | {version: identities}, digest(content)[:12])
    with_text = [name for name, encoder in built.items() if len(encoder.models) > 1]
    for path, text in render_configs(spec, architectures, identity, with_text).items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
    for encoder in built.values():
        for model in encoder.models:
            if model.staged:
                write_manifest(staging.folder / model.staged, dict(model.manifest))
                staging.hand_over(model.staged, tree / model.model / model.version)
    if is_new:
        folder = tree / ENSEMBLING / version
        copy_step(ENSEMBLING, folder)
        shutil.copyfile(tokenizer_file, folder / TOKENIZER)
        _write_label_sets(label_sets, built, folder)
        _keep_added_label_sets(newest(target / ENSEMBLING), folder, fingerprints)
        encoder_list = {name: {"version": model.version, **identities[name]} for name, model in image_encoders.items()}
        manifest = {"kind": ENSEMBLING, "encoders": encoder_list, "label_sets": list(spec.label_sets)}
        write_manifest(folder, {**manifest, "repository_version": identity.version, "key": digest(content)})
    for step in (PREPROCESS, LABEL_SETS):
        current = newest(target / step)
        if current is None or not holds_sources(current, step_sources(step)):
            copy_step(step, tree / step / next_version(target / step))
    if newest(target / ZERO_SHOT) is None:
        (tree / ZERO_SHOT / "1").mkdir()


def _ensembling_version(target: Path, key: str) -> tuple[str, bool]:
    """Name of the version with this content, and whether it has to be made."""
    current = newest(target / ENSEMBLING)
    sources = step_sources(ENSEMBLING)
    if current is not None and read_manifest(current).get("key") == key and holds_sources(current, sources):
        return current.name, False
    return next_version(target / ENSEMBLING), True


def _encoders_of(ensembling: Path) -> Mapping[str, Mapping[str, str]]:
    """What a version of `ensembling` says of the encoders that it belongs to."""
    encoders_: Mapping[str, Mapping[str, str]] = read_manifest(ensembling).get("encoders", {})
    return encoders_


def _identity(image_encoder: ModelVersion, scaled_decoding: bool) -> dict[str, str]:
    """Which checkpoint an encoder is of, and which images it gives the same embeddings for."""
    manifest = image_encoder.manifest
    preprocessing, precision = manifest["preprocessing"], manifest["precision"]
    pixels = pixels_digest(preprocessing["image_size"], scaled_decoding)
    embedding_id = digest([manifest["fingerprint"], preprocessing, precision, pixels])[:16]
    return {"fingerprint": manifest["fingerprint"], "embedding_id": embedding_id}


def copy_step(step: str, folder: Path) -> None:
    """Put a step's Python into a version folder."""
    for name, source in step_sources(step).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def _write_label_sets(label_sets: Sequence[LabelSet], built: Mapping[str, BuiltEncoder], folder: Path) -> None:
    label_sets_folder(folder).mkdir()
    for label_set in label_sets:
        EmbeddedLabelSet(
            classes=label_set.classes,
            prompts=tuple(label_set.prompts()),
            prompt_counts=np.array(label_set.prompt_counts()),
            embeddings={name: encoder.embeddings[label_set.name] for name, encoder in built.items()},
            fingerprints={name: encoder.fingerprint for name, encoder in built.items()},
        ).save(label_set_file(folder, label_set.name))


def _keep_added_label_sets(current: Path | None, folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Take over the label sets that were added to the current version since it was built, where they still fit."""
    if current is None:
        return
    from_spec = read_manifest(current).get("label_sets", [])
    for name, path in added_label_sets(current, from_spec).items():
        with contextlib.suppress(LabelSetFileError):
            EmbeddedLabelSet.load(path, fingerprints)
            if not label_set_file(folder, name).exists():
                shutil.copyfile(path, label_set_file(folder, name))


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise RepositoryError(f"{target} is a file; --repository must name a folder")
    if any(target.iterdir()) and not is_repository(target):
        raise RepositoryError(
            f"{target} holds something else than a clipchoir repository; choose another --repository or empty it"
        )
    if is_repository(target):
        check_format(target, oldest=0)  # a build renews all that may be older


def _check_compatible(target: Path, architectures: Mapping[str, Architecture]) -> None:
    """Versions of a model share one config, so they must be of one shape, and so must the ensemble."""
    current = newest(target / ENSEMBLING)
    if current is None:
        return
    advice = "choose another --repository, or remove this one first"
    present = list(read_manifest(current).get("encoders", {}))
    if present != list(architectures):
        raise RepositoryError(
            f"{target} is of the encoders {', '.join(present) or '(unknown)'}, "
            f"this ensemble has {', '.join(architectures)}; {advice}"
        )
    for name, architecture in architectures.items():
        manifest = read_manifest(newest(target / name))
        found = (manifest.get("preprocessing", {}).get("image_size"), manifest.get("embedding_dim"))
        wanted = (architecture.image_size, architecture.embedding_dim)
        if manifest and found != wanted:
            raise RepositoryError(
                f"{target / name} takes images of {found[0]} pixels and returns {found[1]} numbers, the new version "
                f"{wanted[0]} and {wanted[1]}; {advice}"
            )
