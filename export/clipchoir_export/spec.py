"""What to serve: the TOML file of an ensemble, checked."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from clipchoir_export.errors import SpecError
from clipchoir_export.families import family_names
from clipchoir_export.resources import resource
from clipchoir_steps.label_sets.spec import LabelSet, LabelSetError
from clipchoir_steps.layout import STEPS, ZERO_SHOT
from clipchoir_steps.scoring.options import DEFAULTS, PARAMETERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAMES_TAKEN = re.compile(
    f"{'|'.join((*STEPS, ZERO_SHOT))}"  # models of the repository
    "|image|pixels.*|status|label|scores?|classes|encoder_scores|error"  # tensors of the ensemble
    "|.*_(embedding|text|fingerprint)"  # what is named after an encoder
)
_BUILTIN = "builtin:"


Precision = Literal["fp32", "fp16", "bf16", "int8"]
Dialect = Literal["portable", "current"]
_LABEL_SET_NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LabelSetName = Annotated[str, Field(pattern=_LABEL_SET_NAME)]
Gpu = Annotated[int, Field(ge=0)]  # its number, as nvidia-smi counts


def _known_family(source: str) -> str:
    if source not in family_names():
        raise ValueError(f"there is no such family of encoders; there are {', '.join(family_names())}")
    return source


Source = Annotated[str, AfterValidator(_known_family)]  # a family of encoders


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EncoderSpec(_Table):
    """One image encoder: where its checkpoint is and how it takes part."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    source: Source
    architecture: str | None = None  # None: the checkpoint folder's own config says it
    checkpoint: str  # a file or folder, an open_clip tag, or a hub id
    licence: str | None = None  # of the weights
    imagenet_top1: float | None = Field(default=None, ge=0, le=100)  # published zero-shot accuracy, per cent
    sharpness: float = Field(default=1.0, ge=0, le=10)
    weight: float = Field(default=1.0, ge=0)
    precision: Precision = "fp32"
    dialect: Dialect = "portable"  # of ONNX: opset 18, or 23 with fused attention

    @property
    def text_precision(self) -> Precision:
        """Of the text encoder. Labels are embedded once: nothing is gained by rounding there."""
        return "fp32" if self.precision == "int8" else self.precision


class ServingSpec(_Table):
    """How Triton runs the models. The descriptions are the reasons for the defaults; docs/serving.md shows them."""

    max_batch_size: int = Field(
        default=64,
        ge=1,
        description="Rows of a request, as the wire contract has it, and of an encoder's largest pass.",
    )
    priority_levels: int = Field(
        default=3, ge=1, description="Urgent, normal and bulk requests; 1 goes first, at `preprocess` and the encoders."
    )
    default_priority: int = Field(
        default=2, ge=1, description="Of a request that names none: there is room above and below it."
    )
    preprocess_delay_us: int = Field(
        default=2000,
        ge=0,
        description="How long a batch may wait for more rows; short beside a pass of an encoder, and long enough for "
        "all that was sent at the same time.",
    )
    preprocess_queue_size: int = Field(
        default=128,
        ge=1,
        description="Requests of one priority that may wait to be decoded. The only bound by number: one on the "
        "encoders, which run side by side, wedged whole servers before Triton 26.03.",
    )
    preprocess_timeout_ms: int = Field(
        default=10_000,
        ge=1,
        description="How long a request may wait to be decoded. Together with `encoder_timeout_ms` less than the "
        "client's own 60 s, so that it learns of an overload and does not merely give up.",
    )
    encoder_delay_us: int = Field(
        default=2000,
        ge=0,
        description="How long a batch may wait for more rows: those that were decoded together arrive together, and "
        "one pass over all of them is cheaper than one over the first and one over the rest. Shorter ones, and "
        "requests come in the moment in which Triton misses them.",
    )
    encoder_timeout_ms: int = Field(
        default=30_000,
        ge=1000,
        description="How long a request may wait for an encoder. Long enough for a few full batches on a CPU. Not "
        "below 1,000: the embedded Triton may crash on a request that one encoder rejects before the other has it.",
    )
    encoder_instances: int = Field(
        default=1,
        ge=1,
        description="Copies of an encoder on a CPU, or on each GPU. One uses all cores; Triton's own choice, two, "
        "doubles the memory and was no faster.",
    )
    text_encoder_timeout_ms: int = Field(
        default=600_000,
        ge=1,
        description="How long a batch of prompts may wait: a new label set of 1,000 classes is hundreds of batches.",
    )
    ensembling_delay_us: int = Field(
        default=0, ge=0, description="Scoring gains nothing from larger batches. Nor may it reject what is encoded."
    )
    warmup_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 16),
        description="Passes of each encoder before the server is ready: one image, and the client's batch. The variant "
        "`gpu` takes 1 and `max_batch_size`, so that a batch that does not fit fails at the start.",
    )
    gpus: tuple[Gpu, ...] = Field(
        default=(0,), min_length=1, description="Variant `gpu`: where each encoder has its copies."
    )
    encoder_gpus: dict[str, tuple[Gpu, ...]] = Field(
        default={}, description="Variant `gpu`: encoders that stand elsewhere, such as `{ evaclip = [1] }`."
    )
    text_encoder_gpus: tuple[Gpu, ...] | None = Field(
        default=None,
        description="Variant `gpu`: where the text encoders stand; `[]` is the CPU, which leaves the GPU's memory to "
        "the images. By default with their image encoders, so that a new label set is quick.",
    )
    gpu_instances: int = Field(
        default=1, ge=1, description="Variant `gpu`: copies on each GPU. One pass fills it; a second copy is memory."
    )
    execution_provider: Literal["cuda", "tensorrt"] = Field(
        default="cuda",
        description="Variant `gpu`: `tensorrt` may be faster, but builds its engines when the server starts, and "
        "takes no encoder beyond 2 GB of weights.",
    )
    tensorrt_cache: str | None = Field(
        default=None,
        pattern='^/[^"\\\\]+$',
        description="Variant `gpu`, `tensorrt`: a writable folder of the server's for built engines; by default they "
        "are built at every start.",
    )

    max_image_bytes: int = Field(
        default=64 << 20, ge=1, description="Of one encoded image; larger ones are refused before they are looked at."
    )
    max_image_pixels: int = Field(
        default=89_478_485, ge=1, description="Width times height, refused before decoding; PIL's own limit."
    )
    max_image_side: int = Field(default=65_535, ge=1, description="Pixels; the longest that a JPEG can have.")
    decode_threads: int = Field(default=0, ge=0, description="Of each instance of `preprocess`; 0: one per core.")
    jpeg_scaled_decoding: bool = Field(
        default=False, description="Decode large JPEGs at a fraction of their size: faster, and not exact."
    )

    @model_validator(mode="after")
    def _check(self) -> "ServingSpec":
        if self.default_priority > self.priority_levels:
            raise ValueError(
                f"default_priority is {self.default_priority}; it must be one of 1 to {self.priority_levels}, "
                "the priority_levels"
            )
        return self

    def warmups(self) -> list[int]:
        """`warmup_batch_sizes`, none above `max_batch_size`."""
        return sorted({min(size, self.max_batch_size) for size in self.warmup_batch_sizes})

    def gpus_of(self, encoder: str) -> tuple[int, ...]:
        """Where an image encoder stands in the variant `gpu`."""
        return self.encoder_gpus.get(encoder, self.gpus)

    def text_gpus_of(self, encoder: str) -> tuple[int, ...]:
        """Where an encoder's text encoder stands in the variant `gpu`; empty: on the CPU."""
        return self.gpus_of(encoder) if self.text_encoder_gpus is None else self.text_encoder_gpus


class RequestLabelSetsSpec(_Table):
    """Label sets that requests bring: how large they may be, and how many are kept."""

    max_classes: int = Field(
        default=1000, ge=1, description="More are embedded ahead of time: `clipchoir-export embed`."
    )
    max_prompts: int = Field(
        default=2000,
        ge=1,
        description="Seconds on a GPU, for the largest text encoders. Where the first request gives up, the embedding "
        "goes on, and a later one finds it.",
    )
    max_spec_bytes: int = Field(default=1 << 20, ge=2, description="2,000 prompts of full length are 0.6 MB.")
    memory_mb: int = Field(default=256, ge=1, description="22 sets of 1,000 prompts of the real pair.")
    disk_mb: int = Field(default=4096, ge=1, description="Of the files in the cache folder, which outlive the server.")


class _Named(_Table):
    name: str = Field(pattern="^[a-z][a-z0-9_-]*$")
    label_sets: tuple[LabelSetName, ...] = Field(min_length=1)  # the first is the default


def _scoring_key(name: str) -> tuple[Any, Any]:
    """Type and field of a key that is a scoring parameter, as the table of these has it."""
    entry = PARAMETERS[name]
    bounds: dict[str, Any] = dict(entry.bounds)
    of_type = Literal[tuple(entry.words)] if entry.words else float
    return of_type, Field(default=DEFAULTS[name], description=entry.help, **bounds)


if TYPE_CHECKING:
    _WithScoring = _Named
else:
    _WithScoring = create_model("_WithScoring", __base__=_Named, **{name: _scoring_key(name) for name in DEFAULTS})


class EnsembleSpec(_WithScoring):
    """A whole ensemble."""

    encoders: tuple[EncoderSpec, ...] = Field(min_length=1)
    serving: ServingSpec = ServingSpec()
    request_label_sets: RequestLabelSetsSpec = RequestLabelSetsSpec()

    @property
    def scoring(self) -> dict[str, Any]:
        """The scoring parameters, by name: what a request changes for itself."""
        return {name: getattr(self, name) for name in DEFAULTS}

    @model_validator(mode="after")
    def _check_encoders(self) -> "EnsembleSpec":
        names = [encoder.name for encoder in self.encoders]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two encoders are named "{name}"; every name must differ')
            if _NAMES_TAKEN.fullmatch(name):
                raise ValueError(f'an encoder cannot be named "{name}": the repository uses that name itself')
        if not sum(encoder.weight for encoder in self.encoders) > 0:
            raise ValueError("every encoder has weight 0; at least one must be above 0")
        unknown = sorted(set(self.serving.encoder_gpus) - set(names))
        if unknown:
            raise ValueError(f"serving.encoder_gpus names {', '.join(unknown)}; the encoders are {', '.join(names)}")
        return self


def find_ensemble(name_or_path: str) -> Path:
    """Path of a spec: a file, or the name of one that comes with clipchoir (`demo`, `scenes`).

    Raises:
        SpecError: there is no ensemble of this name.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return path
    shipped = {spec.stem: spec for spec in shipped_ensembles()}
    if name_or_path not in shipped:
        raise SpecError(
            f'"{name_or_path}" is neither a .toml file nor an ensemble that clipchoir has: {", ".join(sorted(shipped))}'
        )
    return shipped[name_or_path]


def shipped_ensembles() -> list[Path]:
    """The specs that come with clipchoir."""
    return sorted(resource("ensembles").glob("*.toml"))


def load_ensemble(path: Path) -> EnsembleSpec:
    """Read and check an ensemble spec.

    Raises:
        SpecError: the file is missing or not TOML, or a key is unknown or has a bad value; the message names the key
            and what is allowed.
    """
    content = _read_toml(path)
    try:
        return EnsembleSpec.model_validate(content)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors()]
        raise SpecError("\n".join(f"{path}: {problem}" for problem in problems)) from error


def load_label_set(name: str, spec_path: Path) -> LabelSet:
    """Read a label set that a spec names: `../label_sets/NAME.toml` beside the spec's folder, or a shipped one.

    Raises:
        SpecError: there is no such file, or its content is wrong.
    """
    candidates = [
        spec_path.resolve().parent.parent / "label_sets" / f"{name}.toml",
        resource("label_sets") / f"{name}.toml",
    ]
    for path in candidates:
        if path.is_file():
            try:
                return LabelSet.parse(name, _read_toml(path))
            except LabelSetError as error:
                raise SpecError(f"{path}: {error}") from error
    raise SpecError(f'{spec_path}: label_sets: "{name}" is neither {candidates[0]} nor a label set that clipchoir has')


def read_label_set(name_or_path: str, name: str | None = None) -> LabelSet:
    """Read a label set: a .toml or .json file, or the name of one that comes with clipchoir.

    Args:
        name_or_path: where it is.
        name: what to call it; None: the file's name.

    Raises:
        SpecError: there is no such file, its content is wrong, or so is the name.
    """
    path = Path(name_or_path)
    if path.suffix not in (".toml", ".json"):
        shipped = sorted(each.stem for each in resource("label_sets").glob("*.toml"))
        if name_or_path not in shipped:
            raise SpecError(
                f'"{name_or_path}" is neither a .toml or .json file nor a label set that clipchoir has: '
                f"{', '.join(shipped)}"
            )
        path = resource("label_sets") / f"{name_or_path}.toml"
    name = name or path.stem
    if not re.fullmatch(_LABEL_SET_NAME, name):
        raise SpecError(
            f'"{name}" is no name for a label set: it must begin with a letter or digit, and have only those and _ . -'
        )
    try:
        return LabelSet.parse(name, _read_json(path) if path.suffix == ".json" else _read_toml(path))
    except LabelSetError as error:
        raise SpecError(f"{path}: {error}") from error


def checkpoint_path(checkpoint: str, spec_path: Path) -> Path:
    """Where a checkpoint lies: `builtin:NAME` comes with clipchoir, other paths are relative to the spec."""
    if checkpoint.startswith(_BUILTIN):
        return resource("demo_checkpoints") / checkpoint.removeprefix(_BUILTIN)
    return spec_path.resolve().parent / Path(checkpoint).expanduser()


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path}: is not valid TOML: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: is not valid JSON: {error}") from error


def _explain(problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]] = {
            "encoders": EncoderSpec,
            "serving": ServingSpec,
            "request_label_sets": RequestLabelSetsSpec,
        }
        table = tables.get(str(location[0]), EnsembleSpec) if len(location) > 1 else EnsembleSpec
        return f"{key}: unknown key; the keys here are {', '.join(table.model_fields)}"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:
        return str(message)
    return f"{key}: {message} (got {problem['input']!r})"
