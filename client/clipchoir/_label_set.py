"""Label sets that a client brings along."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from clipchoir.errors import BadLabelSetFileError
from clipchoir_steps.label_sets import spec as rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class LabelSet:
    """Classes, and the prompts that stand for each.

    What makes a good set is checked by the server, which embeds it on first use and knows it by its `id` afterwards.

    Attributes:
        classes: names, each once.
        templates: prompts with `{}` for the class name; None: the name alone; empty: `extra` has all prompts.
        extra: further prompts of single classes.

    Raises:
        TypeError: a string where a list of strings belongs.
    """

    classes: Sequence[str]
    templates: Sequence[str] | None = None
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lists = {
            "classes": self.classes,
            "templates": () if self.templates is None else self.templates,
            **{f'extra["{k}"]': v for k, v in self.extra.items()},
        }
        for name, value in lists.items():
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise TypeError(f"{name} must be a list of strings, not {value!r}")

    @classmethod
    def from_file(cls, path: str | Path) -> "LabelSet":
        """A TOML or JSON file with `classes` and, if wanted, `templates` and `extra`.

        Raises:
            BadLabelSetFileError: it cannot be read, or is no such file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            content: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise BadLabelSetFileError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # of either parser, and of UTF-8
            kind = "JSON" if path.suffix == ".json" else "TOML"
            raise BadLabelSetFileError(f"{path} is not {kind}: {error}") from error
        try:
            checked = rules.LabelSet.parse(path.stem, content)
        except rules.LabelSetError as error:
            raise BadLabelSetFileError(f"{path}: {error}") from error
        return cls(list(checked.classes), content.get("templates"), content.get("extra", {}))

    @cached_property
    def spec(self) -> str:
        """The JSON that is sent."""
        content = {"classes": list(self.classes)}
        if self.templates is not None:
            content["templates"] = list(self.templates)
        extra = {name: list(prompts) for name, prompts in self.extra.items()}
        return json.dumps(content | ({"extra": extra} if extra else {}), ensure_ascii=False, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """Name by which the server knows the set: the sha256 of `spec`."""
        return rules.spec_id(self.spec.encode("utf-8", "surrogatepass"))
