"""Scoring options: the repository's defaults, and what a request's parameters change about them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clipchoir_steps.scoring.formula import AGGREGATES

NAMES = ("label_set", "label_set_spec", "weights", "logit_scale", "drop_below", "aggregate")
"""Every request parameter that is read; others are left to whom they are for."""


class OptionError(ValueError):
    """A request parameter has a bad value; the message says what would be right."""


@dataclass(frozen=True)
class Options:
    """How one request is scored.

    Attributes:
        label_set: a name, or the id of an ad-hoc set.
        spec: the ad-hoc set itself, as UTF-8 JSON, where the request has it.
        weights: one per encoder, in encoder order.
        logit_scale: factor before the softmax.
        drop_below: probabilities at or under it count as 0.
        aggregate: how the prompts of a class become its score.
    """

    label_set: str
    weights: tuple[float, ...]
    logit_scale: float
    drop_below: float
    aggregate: str
    spec: bytes | None = None

    def changed_by(self, parameters: Mapping[str, object], encoders: Sequence[str]) -> "Options":
        """These options with a request's parameters applied; unknown parameters are left to other steps.

        Raises:
            OptionError: a value is of the wrong type or out of range.
        """
        options = self
        if "label_set" in parameters:
            options = replace(options, label_set=_name(parameters["label_set"]))
        if "label_set_spec" in parameters:
            spec = _spec(parameters["label_set_spec"])
            key = spec_id(spec)
            if "label_set" in parameters and options.label_set != key:
                raise OptionError(
                    f"label_set is {options.label_set!r}, label_set_spec has the id {key}; give one of the two"
                )
            options = replace(options, label_set=key, spec=spec)
        if "aggregate" in parameters:
            value = parameters["aggregate"]
            if value not in AGGREGATES:
                raise OptionError(f"aggregate must be {' or '.join(AGGREGATES)}, got {value!r}")
            options = replace(options, aggregate=str(value))
        if "weights" in parameters:
            options = replace(options, weights=_weights(parameters["weights"], encoders))
        if "logit_scale" in parameters:
            value = _number("logit_scale", parameters["logit_scale"])
            if not 0 < value <= 1000:
                raise OptionError(f"logit_scale must be above 0 and at most 1000, got {value:g}")
            options = replace(options, logit_scale=value)
        if "drop_below" in parameters:
            value = _number("drop_below", parameters["drop_below"])
            if not 0 <= value < 1:
                raise OptionError(f"drop_below must be at least 0 and below 1, got {value:g}")
            options = replace(options, drop_below=value)
        return options


def spec_id(spec: bytes) -> str:
    """The name by which a client may ask for an ad-hoc set again: sha256 of its bytes, in lowercase hex."""
    return hashlib.sha256(spec).hexdigest()


def _spec(value: object) -> bytes:
    if not isinstance(value, str) or not value:
        raise OptionError(f"label_set_spec must be a JSON object as a string, got {value!r}")
    return value.encode("utf-8", "surrogatepass")


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise OptionError(f"label_set must be the name of a label set, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except ValueError:
        raise OptionError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise OptionError(f"{name} must be a finite number, got {value!r}")
    return number


def _weights(value: object, encoders: Sequence[str]) -> tuple[float, ...]:
    expected = f"{len(encoders)} numbers separated by commas, for {', '.join(encoders)}"
    if not isinstance(value, str):
        raise OptionError(f"weights must be a string of {expected}; got {value!r}")
    parts = value.split(",")
    if len(parts) != len(encoders):
        raise OptionError(f"weights must be {expected}; got {value!r}")
    weights = tuple(_number("each of weights", part.strip()) for part in parts)
    if min(weights) < 0 or sum(weights) <= 0 or not math.isfinite(sum(weights)):
        raise OptionError(f"weights must be at least 0 and not all 0; got {value!r}")
    return weights
