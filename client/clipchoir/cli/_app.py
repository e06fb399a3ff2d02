"""What all commands share: the app, how errors end, and progress."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from threading import Thread
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import clipchoir
from clipchoir.errors import ClipchoirError, OverloadedError, TimedOutError, UnreachableError

FAILED, SOME_IMAGES_FAILED, NO_SERVER, INTERRUPTED = 1, 3, 4, 130

EXIT_CODES = (
    "Exit codes: 0 all well, 1 failed, 2 wrong usage, 3 some images could not be classified, 4 no server answered in "
    "time or took the request (try again), 130 interrupted."
)

app = typer.Typer(
    help=f"Classify images with a clipchoir server. {EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
errors = Console(stderr=True)

T = TypeVar("T")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clipchoir {clipchoir.__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


@contextlib.contextmanager
def reporting(interrupted: Callable[[], str] = lambda: "interrupted") -> Iterator[None]:
    """Errors that a user can act on become one line and an exit code.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    try:
        yield
    except (UnreachableError, OverloadedError, TimedOutError) as error:
        complain(str(error))
        raise typer.Exit(NO_SERVER) from error
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at the exit
        raise typer.Exit(FAILED) from None
    except (ClipchoirError, OSError) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        errors.print(interrupted(), style="yellow", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def complain(message: str) -> None:
    """One line on standard error."""
    errors.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """For machines; numbers that are none become null."""
    print(json.dumps(_finite(content), indent=2, ensure_ascii=False))


def _finite(content: Any) -> Any:
    if isinstance(content, float) and content != content:
        return None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")


@contextlib.contextmanager
def progress(
    what: str, count: Callable[[], int | None], done: int = 0
) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """A bar on a terminal with rate and time left, and nothing in a pipe.

    Args:
        what: is going on.
        count: how many there will be; asked beside the work, since it may take long. None: that cannot be known.
        done: how many of them there are already.
    """
    if not errors.is_terminal:
        yield iter
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, speed_estimate_period=60) as bar:
        task = bar.add_task(what, total=None, completed=done)

        def find_total() -> None:
            with contextlib.suppress(Exception):  # the work itself will tell
                bar.update(task, total=count())

        Thread(target=find_total, daemon=True).start()

        def passing(some: Iterable[T]) -> Iterator[T]:
            for each in some:
                bar.advance(task)
                yield each

        yield passing
