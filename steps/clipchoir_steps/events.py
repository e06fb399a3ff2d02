"""Log lines that machines read: one JSON object each, with `event`, `step` and, where there is one, `request_id`."""

import json
import time
from collections.abc import Callable
from typing import Any


class Events:
    """Writes a step's events to Triton's log."""

    def __init__(self, pb_utils: Any, step: str) -> None:
        self._log = pb_utils.Logger
        self._step = step

    def info(self, event: str, **facts: object) -> None:
        """Something that people may want to know of happened."""
        self._log.log_info(self._line(event, facts))

    def warn(self, event: str, **facts: object) -> None:
        """Something has to be looked after; the step goes on."""
        self._log.log_warn(self._line(event, facts))

    def error(self, event: str, **facts: object) -> None:
        """A request has failed."""
        self._log.log_error(self._line(event, facts))

    def _line(self, event: str, facts: dict[str, object]) -> str:
        return json.dumps({"event": event, "step": self._step, **facts})


class Pace:
    """Lets one event through per interval and counts the others."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = clock()
        self._held_back = 0

    def admit(self) -> int | None:
        """How many events were held back since the last that was let through; None: hold back this one, too."""
        now = self._clock()
        if now < self._next:
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        self._next = now + self._seconds
        return held_back
