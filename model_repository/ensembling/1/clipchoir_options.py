"""Scoring options: the repository's defaults, and what a request's parameters change about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


class OptionError(ValueError):
    """A request parameter has a bad value; the message says what would be right."""


class UnsupportedOptionError(Exception):
    """A request parameter asks for something that this repository cannot do."""


@dataclass(frozen=True)
class Options:
    """How one request is scored."""

    label_set: str
    weights: tuple[float, ...]  # in encoder order
    logit_scale: float
    drop_below: float

    def changed_by(self, parameters: Mapping[str, object], encoders: Sequence[str]) -> "Options":
        """These options with a request's parameters applied; unknown parameters are left to other steps.

        Raises:
            OptionError: a value is of the wrong type or out of range.
            UnsupportedOptionError: the parameter needs something that this repository lacks.
        """
        options = self
        if "label_set_spec" in parameters:
            raise UnsupportedOptionError(
                "label_set_spec needs text encoders, which this repository does not have; name one of its label sets"
            )
        if "label_set" in parameters:
            options = replace(options, label_set=_name(parameters["label_set"]))
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
