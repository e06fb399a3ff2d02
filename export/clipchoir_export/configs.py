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
        "outputs": public_outputs(architectures),
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


@dataclass(frozen=True)
class Output:
    """A tensor that clients may ask `zero_shot` for, made by `ensembling`."""

    name: str
    data_type: str
    dims: str
    meaning: str


def public_outputs(architectures: Mapping[str, Architecture]) -> list[Output]:
    """The outputs of an ensemble of these encoders."""
    embeddings = [
        Output(f"{name}_embedding", "TYPE_FP32", f"{architecture.embedding_dim}", "unit-length image embedding")
        for name, architecture in architectures.items()
    ]
    return [
        Output("label", "TYPE_STRING", "1", "best class"),
        Output("score", "TYPE_FP32", "1", "its score"),
        Output("scores", "TYPE_FP32", "-1", "class scores, sum 1"),
        Output("classes", "TYPE_STRING", "-1", "class names, in the order of the scores"),
        Output("encoder_scores", "TYPE_FP32", f"{len(architectures)}, -1", "the scores by each encoder alone"),
        *embeddings,
        Output("error", "TYPE_STRING", "1", "empty, or why this row could not be decoded"),
    ]


def _pixel_tensors(architectures: Mapping[str, Architecture]) -> dict[int, str]:
    sizes = sorted({architecture.image_size for architecture in architectures.values()})
    if len(sizes) == 1:
        return {sizes[0]: "pixels"}
    return {size: f"pixels_{size}" for size in sizes}
