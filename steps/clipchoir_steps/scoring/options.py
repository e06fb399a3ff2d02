"""The scoring parameters: one table for the server's check, the ensemble's spec, the command line and the docs.

`Scoring` is the table: a field is a parameter of requests, under its own name, with how its value is read, which values
are right, and what it does. The arithmetic is in `formula`.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from clipchoir_steps.label_sets.spec import spec_id

SOFTMAX_MEAN, MEAN_EMBEDDING = "softmax_mean", "mean_embedding"
_ENTRY = "parameter"


class OptionError(ValueError):
    """A request parameter has a bad value; the message says what would be right."""


@dataclass(frozen=True)
class Parameter:
    """What the table says of one request parameter.

    Attributes:
        read: its name, value as it was sent, and the encoders -> value as it is used; raises `OptionError`.
        range: which values are right, for people.
        help: what the parameter does, for people.
        bounds: the range of a number for validators, by `gt`, `ge`, `lt` and `le`.
        words: the values that are right, where they are words.
    """

    read: Callable[[str, object, Sequence[str]], Any]
    range: str
    help: str
    bounds: Mapping[str, float] = field(default_factory=dict)
    words: Sequence[str] = ()


def _number(default: float, help_: str, **bounds: float) -> Any:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    allowed = " and ".join(f"{words[kind]} {bound:g}" for kind, bound in bounds.items())

    def read(name: str, value: object, _: Sequence[str]) -> float:
        number = _finite(name, value)
        if not all(getattr(operator, kind)(number, bound) for kind, bound in bounds.items()):
            raise OptionError(f"{name} must be {allowed}, got {number:g}")
        return number

    return field(default=default, metadata={_ENTRY: Parameter(read, allowed, help_, bounds=bounds)})


def _choice(default: str, help_: str, words: Sequence[str]) -> Any:
    allowed = " or ".join(words)

    def read(name: str, value: object, _: Sequence[str]) -> str:
        if value not in words:
            raise OptionError(f"{name} must be {allowed}, got {value!r}")
        return str(value)

    return field(default=default, metadata={_ENTRY: Parameter(read, allowed, help_, words=words)})


def _per_encoder(help_: str) -> Any:
    def read(name: str, value: object, encoders: Sequence[str]) -> tuple[float, ...]:
        expected = f"{len(encoders)} numbers separated by commas, for {', '.join(encoders)}"
        if not isinstance(value, str):
            raise OptionError(f"{name} must be a string of {expected}; got {value!r}")
        parts = value.split(",")
        if len(parts) != len(encoders):
            raise OptionError(f"{name} must be {expected}; got {value!r}")
        numbers = tuple(_finite(f"each of {name}", part.strip()) for part in parts)
        if min(numbers) < 0 or sum(numbers) <= 0 or not math.isfinite(sum(numbers)):
            raise OptionError(f"{name} must be at least 0 and not all 0; got {value!r}")
        return numbers

    allowed = "numbers separated by commas, one for each encoder, at least 0 and not all 0"
    return field(metadata={_ENTRY: Parameter(read, allowed, help_)})


@dataclass(frozen=True)
class Scoring:
    """How images are scored: the table of the scoring parameters, and the values that one request has of them."""

    weights: tuple[float, ...] = _per_encoder("Share of each encoder in the scores, in encoder order.")
    logit_scale: float = _number(100.0, "Factor before the softmax.", gt=0, le=1000)
    drop_below: float = _number(0.0, "Prompts with a probability at or under this count as 0; 0 keeps all.", ge=0, lt=1)
    aggregate: str = _choice(
        SOFTMAX_MEAN,
        "How the prompts of a class become its score: the mean of their probabilities, or one embedding, the mean of "
        "theirs.",
        (SOFTMAX_MEAN, MEAN_EMBEDDING),
    )

    @classmethod
    def of(cls, values: Mapping[str, object], encoders: Sequence[str]) -> "Scoring":
        """Those of a repository's config; the table's defaults for the ones that it does not have.

        Raises:
            OptionError: a value is of the wrong type or out of range.
        """
        return cls(**_read(values, encoders))

    def changed_by(self, parameters: Mapping[str, object], encoders: Sequence[str]) -> "Scoring":
        """These, where a request's parameters do not say otherwise; parameters of others are left to them.

        Raises:
            OptionError: a value is of the wrong type or out of range.
        """
        return replace(self, **_read(parameters, encoders))


def _read(values: Mapping[str, object], encoders: Sequence[str]) -> dict[str, Any]:
    return {name: each.read(name, values[name], encoders) for name, each in PARAMETERS.items() if name in values}


PARAMETERS: Mapping[str, Parameter] = {each.name: each.metadata[_ENTRY] for each in fields(Scoring)}
DEFAULTS: Mapping[str, Any] = {each.name: each.default for each in fields(Scoring) if each.default is not MISSING}
"""Values of an ensemble that does not say otherwise. `weights` have none: they belong to the encoders."""
LABEL_SET, LABEL_SET_SPEC = "label_set", "label_set_spec"
NAMES = (LABEL_SET, LABEL_SET_SPEC, *PARAMETERS)
"""Every request parameter that `ensembling` reads; others are left to whom they are for."""


@dataclass(frozen=True)
class Options:
    """What one request asks for.

    Attributes:
        label_set: a name, or the id of an ad-hoc set.
        scoring: how to score.
        spec: the ad-hoc set itself, as UTF-8 JSON, where the request has it.
    """

    label_set: str
    scoring: Scoring
    spec: bytes | None = None

    def changed_by(self, parameters: Mapping[str, object], encoders: Sequence[str]) -> "Options":
        """These options with a request's parameters applied; unknown parameters are left to other steps.

        Raises:
            OptionError: a value is of the wrong type or out of range.
        """
        options = replace(self, scoring=self.scoring.changed_by(parameters, encoders))
        if LABEL_SET in parameters:
            options = replace(options, label_set=_name(parameters[LABEL_SET]))
        if LABEL_SET_SPEC in parameters:
            spec = _spec(parameters[LABEL_SET_SPEC])
            key = spec_id(spec)
            if LABEL_SET in parameters and options.label_set != key:
                raise OptionError(
                    f"label_set is {options.label_set!r}, label_set_spec has the id {key}; give one of the two"
                )
            options = replace(options, label_set=key, spec=spec)
        return options


def _spec(value: object) -> bytes:
    if not isinstance(value, str) or not value:
        raise OptionError(f"label_set_spec must be a JSON object as a string, got {value!r}")
    return value.encode("utf-8", "surrogatepass")


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise OptionError(f"label_set must be the name of a label set, got {value!r}")
    return value


def _finite(name: str, value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except ValueError:
        raise OptionError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise OptionError(f"{name} must be a finite number, got {value!r}")
    return number
