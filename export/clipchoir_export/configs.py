"""The repository's `config.pbtxt` files, rendered from a spec and the encoders' architectures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from clipchoir_export.spec import EnsembleSpec
from clipchoir_export.towers import Architecture

UNBUILT = "unbuilt"


@dataclass(frozen=True)
class Identity:
    """Which build of the ensemble a repository is."""

    fingerprints: Mapping[str, str]  # by encoder name
    version: str


def render_configs(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    identity: Identity | None = None,
) -> dict[Path, str]:
    """Every config of the repository, by its path in it.

    Args:
        spec: what to serve.
        architectures: by encoder name, in the spec's order.
        identity: of the build; None for a repository without weights.
    """
    identity = identity or Identity(dict.fromkeys(architectures, UNBUILT), UNBUILT)
    context = {
        "spec": spec,
        "serving": spec.serving,
        "architectures": architectures,
        "pixels": _pixel_tensors(architectures),
        "identity": identity,
        "public_outputs": public_outputs(list(architectures)),
    }
    environment = Environment(
        loader=PackageLoader("clipchoir_export"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  protobuf text, not HTML
        keep_trailing_newline=True,
    )
    templates = {name: f"{name}.pbtxt.j2" for name in ("preprocess", "ensembling", "zero_shot")}
    configs = {
        Path(name) / "config.pbtxt": environment.get_template(template).render(context)
        for name, template in templates.items()
    }
    for encoder in spec.encoders:
        configs[Path(encoder.name) / "config.pbtxt"] = environment.get_template("encoder.pbtxt.j2").render(
            context, encoder=encoder, architecture=architectures[encoder.name]
        )
    return configs


def public_outputs(encoders: list[str]) -> list[str]:
    """Names of the tensors that clients may ask `zero_shot` for."""
    embeddings = [f"{encoder}_embedding" for encoder in encoders]
    return ["label", "score", "scores", "classes", "encoder_scores", *embeddings, "error"]


def _pixel_tensors(architectures: Mapping[str, Architecture]) -> dict[int, str]:
    sizes = sorted({architecture.image_size for architecture in architectures.values()})
    if len(sizes) == 1:
        return {sizes[0]: "pixels"}
    return {size: f"pixels_{size}" for size in sizes}
