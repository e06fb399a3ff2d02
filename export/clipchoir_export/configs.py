"""The repository's `config.pbtxt` files, rendered from a spec and the encoders' architectures."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import EnsembleSpec
from clipchoir_steps.label_sets.tokenizer import CONTEXT_LENGTH
from clipchoir_steps.layout import CONFIG, FORMAT, STEPS, ZERO_SHOT, text_model
from clipchoir_steps.preprocess.probe import MADE_BY, pixels_digest
from clipchoir_steps.scoring.outputs import public_outputs

UNBUILT = "unbuilt"
_UNBUILT_ENCODER = {"fingerprint": UNBUILT, "embedding_id": UNBUILT}
_TEMPLATES = Environment(
    loader=PackageLoader("clipchoir_export"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701  protobuf text and shell, not HTML
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Identity:
    """Which build of the ensemble a repository is.

    Attributes:
        encoders: that each version of `ensembling` belongs to, by version, by name: their `fingerprint`, of the
            checkpoint, and their `embedding_id`, of all that an image's embedding depends on.
        version: of the repository as a whole.
    """

    encoders: Mapping[str, Mapping[str, Mapping[str, str]]]
    version: str

    def by_version(self, encoder: str, what: str) -> str:
        """As the config has it: `1=aaa,2=bbb`."""
        return ",".join(
            f"{version}={each[encoder][what]}"
            for version, each in self.encoders.items()
            if what in each.get(encoder, {})
        )


def render_configs(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    identity: Identity | None = None,
    text_encoders: Collection[str] = (),
) -> dict[Path, str]:
    """Every config of the repository, by its path in it.

    Args:
        spec: what to serve.
        architectures: by encoder name, in the spec's order.
        identity: of the build; None for a repository without weights.
        text_encoders: names of the encoders whose text towers are models of the repository, too.
    """
    context: dict[str, Any] = {
        "spec": spec,
        "serving": spec.serving,
        "architectures": architectures,
        "pixels": _pixel_tensors(architectures),
        "pixels_digest": _pixel_digests(spec, architectures) if identity else UNBUILT,
        "pixels_made_by": MADE_BY if identity else UNBUILT,
        "identity": identity or Identity({"1": dict.fromkeys(architectures, _UNBUILT_ENCODER)}, UNBUILT),
        "outputs": public_outputs({name: each.embedding_dim for name, each in architectures.items()}),
        "context_length": CONTEXT_LENGTH,
        "format": FORMAT,
        # Label sets are embedded by every encoder, or by none.
        "text_models": ",".join(f"{name}={text_model(name)}" for name in architectures)
        if set(text_encoders) >= architectures.keys()
        else "",
    }
    templates = {name: f"{name}.pbtxt.j2" for name in (*STEPS, ZERO_SHOT)}
    configs = {Path(name) / CONFIG: load_template(template).render(context) for name, template in templates.items()}
    serving = spec.serving
    for encoder in spec.encoders:
        context.update(encoder=encoder, architecture=architectures[encoder.name], precision=encoder.precision)
        template = load_template("encoder.pbtxt.j2")
        configs |= _with_variant(encoder.name, template, context, serving.gpus_of(encoder.name))
    precisions = {encoder.name: encoder.text_precision for encoder in spec.encoders}
    for name in text_encoders:
        context.update(model=text_model(name), architecture=architectures[name], precision=precisions[name])
        template = load_template("text_encoder.pbtxt.j2")
        configs |= _with_variant(text_model(name), template, context, serving.text_gpus_of(name))
    return configs


def _with_variant(model: str, template: Template, context: Mapping[str, Any], gpus: Collection[int]) -> dict[Path, str]:
    """A model's config for any machine, and beside it the one that Triton takes with `--model-config-name=gpu`."""
    anywhere = None
    if context["precision"] == "int8":  # GPUs have no such products
        anywhere = gpus = ()
    return {
        Path(model) / CONFIG: template.render(context, gpus=anywhere),
        Path(model) / "configs" / "gpu.pbtxt": template.render(context, gpus=gpus),
    }


def load_template(name: str) -> Template:
    """A template of this package."""
    return _TEMPLATES.get_template(name)


def _pixel_digests(spec: EnsembleSpec, architectures: Mapping[str, Architecture]) -> str:
    """Which pixels the encoders are given on this machine: `224=abc,336=def`."""
    scaled = spec.serving.jpeg_scaled_decoding
    return ",".join(f"{size}={pixels_digest(size, scaled)}" for size in _pixel_tensors(architectures))


def _pixel_tensors(architectures: Mapping[str, Architecture]) -> dict[int, str]:
    sizes = sorted({architecture.image_size for architecture in architectures.values()})
    if len(sizes) == 1:
        return {sizes[0]: "pixels"}
    return {size: f"pixels_{size}" for size in sizes}
