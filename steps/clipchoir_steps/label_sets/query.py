"""What other steps may ask `ensembling` about label sets and parameters, as JSON in its input `query`.

Answers are JSON, too, errors with them: a step that asks another loses an error's code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ListSets:
    """Which named label sets there are."""


@dataclass(frozen=True)
class ShowSet:
    """What is in the label set of this name or id."""

    name: str


@dataclass(frozen=True)
class InspectSpec:
    """What this spec would be as a label set, without embedding it."""

    spec: str


@dataclass(frozen=True)
class CheckParameters:
    """Whether a request with these parameters could be answered."""

    parameters: Mapping[str, object]


Query = ListSets | ShowSet | InspectSpec | CheckParameters
_KINDS = {"list": ListSets, "show": ShowSet, "inspect": InspectSpec, "check": CheckParameters}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class RefusedError(Exception):
    """A query was answered with an error.

    Attributes:
        code: name of Triton's code for it.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def encode(query: Query) -> str:
    """A query as its JSON."""
    return json.dumps({"kind": _NAMES[type(query)], **asdict(query)})


def decode(text: bytes) -> Query:
    """A query from its JSON.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    content = json.loads(text)
    return _KINDS[content.pop("kind")](**content)


def answer(content: object) -> str:
    """An answer as its JSON; ASCII, since half a character cannot become a tensor."""
    return json.dumps(content)


def refusal(message: str, code: str) -> str:
    """An answer that is an error, as its JSON."""
    return json.dumps({"error": message, "code": code})


def read_answer(text: bytes) -> dict[str, object]:
    """The content of an answer.

    Raises:
        RefusedError: it is an error.
    """
    content: dict[str, object] = json.loads(text)
    if "error" in content:
        raise RefusedError(str(content["error"]), str(content["code"]))
    return content
