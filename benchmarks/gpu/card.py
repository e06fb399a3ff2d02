"""The graphics card that is measured, as nvidia-smi sees it."""

import os
import subprocess
from dataclasses import dataclass
from typing import Any

_FIELDS = ("name", "memory.total", "memory.used", "driver_version", "power.limit")
_TIMEOUT = 60.0  # seconds


class CardError(Exception):
    """There is no card that can be used; the message says why."""


@dataclass(frozen=True)
class Card:
    """One NVIDIA GPU.

    Attributes:
        index: as nvidia-smi takes it, a number or a UUID.
        name: of its model.
        memory: bytes.
        driver: its version.
        power_limit: watts, as nvidia-smi writes it.
    """

    index: str
    name: str
    memory: int
    driver: str
    power_limit: str

    def used(self) -> int:
        """Bytes that are taken at this moment, by whichever process.

        Raises:
            CardError: nvidia-smi fails.
        """
        return _mebibytes(_query(self.index)["memory.used"])

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {
            "card": self.name,
            "card_memory_gib": round(self.memory / 2**30, 1),
            "driver": self.driver,
            "power_limit_w": self.power_limit,
        }


def find_card() -> Card:
    """The first card that CUDA_VISIBLE_DEVICES names, or number 0.

    From then on this process and those that it starts see that card alone, under the number that nvidia-smi has for it.

    Raises:
        CardError: there is none.
    """
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if index in ("", "-1"):
        raise CardError("CUDA_VISIBLE_DEVICES hides every GPU; unset it, or name one")
    found = _query(index)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = index
    memory = _mebibytes(found["memory.total"])
    return Card(index, found["name"], memory, found["driver_version"], found["power.limit"])


def _query(index: str) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits", "-i", index]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise CardError(
            "no NVIDIA GPU was found: there is no nvidia-smi, which comes with NVIDIA's driver (in a container: start "
            "it with --gpus all)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CardError(f"nvidia-smi does not answer within {_TIMEOUT:g} s; the driver hangs") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        raise CardError(f"no NVIDIA GPU was found at {index}; nvidia-smi says: {said}")
    values = [value.strip() for value in lines[0].split(",")]
    if len(values) != len(_FIELDS):
        raise CardError(f"nvidia-smi answers with something else than {', '.join(_FIELDS)}: {lines[0]}")
    return dict(zip(_FIELDS, values, strict=True))


def _mebibytes(value: str) -> int:
    try:
        return int(float(value) * 2**20)
    except ValueError as error:
        raise CardError(f'nvidia-smi cannot tell the card\'s memory, it says "{value}"; name a whole card') from error
