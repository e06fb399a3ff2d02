"""Spec -> a complete Triton model repository, or a new version of its models."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.progress import Progress

from clipchoir_export.build.assembly import Assembly
from clipchoir_export.build.encoder import (
    BuildOptions,
    BuiltEncoder,
    EncoderBuild,
)
from clipchoir_export.build.publishing import publish
from clipchoir_export.build.staging import Staging
from clipchoir_export.errors import RepositoryError
from clipchoir_export.families import registry as encoders
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import EnsembleSpec, load_label_set
from clipchoir_export.text import write_tokenizer
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.layout import (
    ENSEMBLING,
    TOKENIZER,
    check_format,
    is_repository,
    newest,
    read_manifest,
    versions,
    write_manifest,
)


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
            tree = staging.new_tree()
            Assembly(
                spec,
                architectures,
                encoders={name: encoder.models[0] for name, encoder in built.items()},
                text_encoders=[name for name, encoder in built.items() if len(encoder.models) > 1],
                label_sets={each.name: _embedded(each, built) for each in label_sets},
                tokenizer=tokenizer_file,
                target=target,
            ).lay_out(tree)
            for model in (model for encoder in built.values() for model in encoder.models):
                if model.staged:
                    write_manifest(staging.folder / model.staged, model.manifest)
                    staging.hand_over(model.staged, tree / model.model / model.version)
            new = [f"{model.name}/{number}" for model in sorted(tree.iterdir()) for number in versions(model)]
            publish(tree, target)
            staging.discard_all()
            return new
    except OSError as error:
        raise RepositoryError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error


def _embedded(label_set: LabelSet, built: Mapping[str, BuiltEncoder]) -> EmbeddedLabelSet:
    return EmbeddedLabelSet(
        classes=label_set.classes,
        prompts=tuple(label_set.prompts()),
        prompt_counts=np.array(label_set.prompt_counts()),
        embeddings={name: encoder.embeddings[label_set.name] for name, encoder in built.items()},
        fingerprints={name: encoder.fingerprint for name, encoder in built.items()},
    )


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
