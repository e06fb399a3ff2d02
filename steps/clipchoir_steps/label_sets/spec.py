"""What a label set is, and the prompts that it stands for: one rule for client, export and server.

The standard library alone, so that the client needs nothing more.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLASS_NAME = "{}"
_KEYS = ("classes", "templates", "extra")


class LabelSetError(ValueError):
    """A label set is wrong; the message names what, and what would be right."""


@dataclass(frozen=True)
class Limits:
    """How large an ad-hoc label set may be: it has to be embedded while its first request waits."""

    classes: int
    prompts: int
    spec_bytes: int


@dataclass(frozen=True)
class LabelSet:
    """Classes and how to put them into words.

    Attributes:
        name: what messages call it.
        classes: class names, in the order of the scores.
        templates: prompts with `{}` for the class name.
        extra: prompts of one class alone, by class name.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, content: Mapping[str, Any]) -> "LabelSet":
        """Check the content of a TOML file or of a JSON object.

        Raises:
            LabelSetError: a key is unknown, a type is wrong, a class is empty or there twice, a template has no
                `{}`, or a class is left without a prompt.
        """
        if not isinstance(content, Mapping):
            raise LabelSetError(f'label set "{name}" is not an object with the keys {", ".join(_KEYS)}')
        for key in content:
            if key not in _KEYS:
                raise LabelSetError(f'label set "{name}": unknown key "{key}"; the keys are {", ".join(_KEYS)}')
        classes = _strings(name, "classes", content.get("classes"))
        templates = _strings(name, "templates", content.get("templates", [CLASS_NAME]))
        _check_classes(name, classes)
        for template in templates:
            if CLASS_NAME not in template:
                raise LabelSetError(f'label set "{name}": template "{template}" has no "{{}}" for the class name')
        extra = content.get("extra", {})
        if not isinstance(extra, Mapping):
            raise LabelSetError(f'label set "{name}": "extra" must map class names to lists of prompts')
        for key in extra:
            if key not in classes:
                raise LabelSetError(f'label set "{name}": "extra" names the class "{key}", which "classes" lacks')
        prompts = {key: _strings(name, f'extra."{key}"', value) for key, value in extra.items()}
        for class_name in classes:
            if not templates and not prompts.get(class_name):
                raise LabelSetError(f'label set "{name}": class "{class_name}" has neither templates nor extra prompts')
        return cls(name, classes, templates, prompts)

    @classmethod
    def parse_json(cls, name: str, spec: bytes, limits: Limits) -> "LabelSet":
        """Check a JSON object that a request brings.

        Raises:
            LabelSetError: as `parse`, or this is no JSON, or it is larger than the limits allow.
        """
        if len(spec) > limits.spec_bytes:
            raise LabelSetError(f'label set "{name}" has {len(spec):,} bytes, at most {limits.spec_bytes:,} are taken')
        try:
            content = json.loads(spec)
        except (ValueError, RecursionError) as error:
            raise LabelSetError(f'label set "{name}" is not JSON: {error}') from error
        label_set = cls.parse(name, content)
        counts = {"classes": len(label_set.classes), "prompts": sum(label_set.prompt_counts())}
        for kind, count in counts.items():
            if count > (most := getattr(limits, kind)):
                raise LabelSetError(
                    f'label set "{name}" has {count:,} {kind}, a request may bring {most:,}; embed a larger set ahead '
                    "of time with clipchoir-export embed"
                )
        return label_set

    def prompts_of(self, class_name: str) -> list[str]:
        """Prompts of one class: its templates, then its extra prompts."""
        filled = [template.replace(CLASS_NAME, class_name) for template in self.templates]
        return [*filled, *self.extra.get(class_name, ())]

    def prompts(self) -> list[str]:
        """All prompts, class after class."""
        return [prompt for class_name in self.classes for prompt in self.prompts_of(class_name)]

    def prompt_counts(self) -> list[int]:
        """How many prompts each class has, in class order."""
        return [len(self.templates) + len(self.extra.get(class_name, ())) for class_name in self.classes]


def spec_id(spec: bytes) -> str:
    """The name by which a client may ask for an ad-hoc set again: sha256 of its bytes, in lowercase hex."""
    return hashlib.sha256(spec).hexdigest()


def _strings(name: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise LabelSetError(f'label set "{name}": {key} must be a list of strings')
    for item in value:
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise LabelSetError(f'label set "{name}": {key}: {item!r} is not valid Unicode') from error
    return tuple(value)


def _check_classes(name: str, classes: tuple[str, ...]) -> None:
    if not classes:
        raise LabelSetError(f'label set "{name}" has no classes')
    seen = set()
    for class_name in classes:
        if not class_name.strip():
            raise LabelSetError(f'label set "{name}": a class name is empty')
        if class_name in seen:
            raise LabelSetError(f'label set "{name}": class "{class_name}" is there twice')
        seen.add(class_name)
