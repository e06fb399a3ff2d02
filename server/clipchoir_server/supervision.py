"""Keeps a server up: starts it again when it or one of its Python steps has died, but not for ever."""

import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NoReturn

from clipchoir_server.errors import DiedError, ServerError
from clipchoir_server.triton import Triton

_LONGEST_WAIT = 30.0  # seconds


@dataclass(frozen=True)
class RestartLimit:
    """How often a server may be started again.

    Attributes:
        most: times within the window; 0: never.
        window: seconds.
    """

    most: int
    window: float


def keep_serving(
    serve: Callable[[], AbstractContextManager[Triton]],
    limit: RestartLimit,
    on_ready: Callable[[], object],
    report: Callable[[str], object],
) -> NoReturn:
    """Serve until something dies that may not be started again.

    Every death is told in one line, such as
    `clipchoir-server event=step_died step=preprocess pid=4711 action=restart restart=1 of=5 wait=0`.

    Args:
        serve: starts a server and stops it again, like `triton.serving`.
        limit: of restarts.
        on_ready: is called whenever the server is ready.
        report: is given each line.

    Raises:
        ServerError: the server could not be started the first time, or has died once too often.
    """
    restarts: list[float] = []
    died_at: float | None = None
    while True:
        try:
            with serve() as triton:
                if died_at is not None:
                    report(_line("restarted", seconds=round(time.monotonic() - died_at, 1)))
                on_ready()
                died_at = None
                triton.wait()
        except ServerError as error:
            now = time.monotonic()
            if died_at is None and not isinstance(error, DiedError):
                raise  # it has never been up
            died_at = now if died_at is None else died_at
            what = error.event if isinstance(error, DiedError) else {"event": "start_failed", "reason": str(error)}
            restarts = [each for each in restarts if now - each < limit.window]
            if len(restarts) >= limit.most:
                report(_line(**what, action="exit", restarts=len(restarts)))
                raise
            wait = min(2.0 ** (len(restarts) - 1), _LONGEST_WAIT) if restarts else 0.0
            restarts.append(now)
            report(_line(**what, action="restart", restart=len(restarts), of=limit.most, wait=round(wait)))
            time.sleep(wait)


def _line(event: str, **fields: object) -> str:
    """`key=value` pairs; a value that is no single word is a JSON string."""
    values = {
        key: value if re.fullmatch(r"[\w./-]+", str(value)) else json.dumps(value) for key, value in fields.items()
    }
    return " ".join(["clipchoir-server", f"event={event}", *(f"{key}={value}" for key, value in values.items())])
