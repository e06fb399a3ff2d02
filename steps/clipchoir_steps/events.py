"""Log lines that machines read: one JSON object each."""

import json
import time
from collections.abc import Callable


def event(name: str, step: str, request_id: str, **facts: object) -> str:
    """A line that says what happened in which step of the ensemble to which request."""
    return json.dumps({"event": name, "step": step, "request_id": request_id, **facts})


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
