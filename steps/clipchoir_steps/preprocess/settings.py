"""The step's settings: the `parameters` of its config."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from clipchoir_steps.preprocess.decode import Limits


@dataclass(frozen=True)
class Settings:
    """How one instance of the step works."""

    limits: Limits
    threads: int
    scaled_decoding: bool  # decode large JPEGs at a fraction of their size
    pixels: Mapping[int, str] = field(default_factory=dict)  # digests by size, as the repository was built with
    pixels_made_by: str = ""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> "Settings":
        """Read them from a config's parameters, as `clipchoir-export` renders them.

        Raises:
            ValueError: one is missing or has a bad value; the message names it and what is allowed.
        """
        limits = Limits(
            max_bytes=_whole_number(parameters, "max_image_bytes", smallest=1),
            max_pixels=_whole_number(parameters, "max_image_pixels", smallest=1),
            max_side=_whole_number(parameters, "max_image_side", smallest=1),
        )
        threads = _whole_number(parameters, "decode_threads", smallest=0) or len(os.sched_getaffinity(0))
        return cls(
            limits,
            threads,
            _switch(parameters, "jpeg_scaled_decoding"),
            _digests(parameters, "pixels_digest"),
            parameters.get("pixels_made_by", ""),
        )


def _whole_number(parameters: Mapping[str, str], name: str, smallest: int) -> int:
    value = parameters.get(name, "")
    if not value.isdecimal() or int(value) < smallest:
        raise ValueError(f'parameter "{name}" must be a whole number, at least {smallest}; got "{value}"')
    return int(value)


def _digests(parameters: Mapping[str, str], name: str) -> dict[int, str]:
    value = parameters.get(name, "")
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(size.isdecimal() and digest for size, _, digest in pairs):
        raise ValueError(f'parameter "{name}" must be digests by size, as in "224=d34f9fff972f1110"; got "{value}"')
    return {int(size): digest for size, _, digest in pairs}


def _switch(parameters: Mapping[str, str], name: str) -> bool:
    value = parameters.get(name, "")
    if value not in ("true", "false"):
        raise ValueError(f'parameter "{name}" must be "true" or "false"; got "{value}"')
    return value == "true"
