"""The command `clipchoir`."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from clipchoir._client import Client
from clipchoir._evaluate import Evaluation, labelled_images
from clipchoir._files import find_images
from clipchoir._results import Classification
from clipchoir._writers import Format, writer
from clipchoir.errors import ClipchoirError

FAILED, SOME_IMAGES_FAILED = 1, 3

app = typer.Typer(
    help="Classify images with a clipchoir server. Exit codes: 0 all well, 1 failed, 2 wrong usage, "
    "3 some images could not be classified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(help="host:port of the server's gRPC endpoint.", envvar="CLIPCHOIR_URL")]
LabelSetName = Annotated[str | None, typer.Option(help="Label set of the server; default: the server's default.")]
Weights = Annotated[str | None, typer.Option(help="Weights of the encoders, as in 0.6,0.4; default: the server's.")]
DropBelow = Annotated[float | None, typer.Option(help="Ignore prompts with a probability at or under this.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per request.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")]


@app.command()
def classify(
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders to search for them.")],
    output: Annotated[Format, typer.Option(help="How to write the results.")] = Format.table,
    url: Url = "localhost:8001",
    label_set: LabelSetName = None,
    weights: Weights = None,
    drop_below: DropBelow = None,
    batch_size: BatchSize = 16,
    timeout: Timeout = 60.0,
) -> None:
    """Classify images and print one result per image, in natural order."""
    with _reporting(), Client(url, timeout=timeout) as client:
        images = find_images(paths)
        results = client.stream(
            images,
            label_set=label_set,
            weights=_numbers(weights),
            drop_below=drop_below,
            batch_size=batch_size,
        )
        failed: list[Classification] = []
        writer(output)(_noting_failures(_with_progress(results, len(images)), failed), sys.stdout)
    if failed:
        raise typer.Exit(SOME_IMAGES_FAILED)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder with one sub-folder of images per class.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = "localhost:8001",
    label_set: LabelSetName = None,
    weights: Weights = None,
    drop_below: DropBelow = None,
    batch_size: BatchSize = 16,
    timeout: Timeout = 60.0,
) -> None:
    """Measure the accuracy of the ensemble and of each encoder alone on labelled images."""
    with _reporting(), Client(url, timeout=timeout) as client:
        images = labelled_images(folder)
        start = time.monotonic()
        results = client.stream(
            [image.path for image in images],
            label_set=label_set,
            weights=_numbers(weights),
            drop_below=drop_below,
            batch_size=batch_size,
        )
        evaluation = Evaluation.count(images, _with_progress(results, len(images)))
        seconds = time.monotonic() - start
    if as_json:
        print(json.dumps(evaluation.as_json(seconds), indent=2))
    else:
        Console().print(evaluation.render(seconds), highlight=False)
    if evaluation.failed:
        raise typer.Exit(SOME_IMAGES_FAILED)


def main() -> None:
    """Entry point."""
    app(prog_name="clipchoir")


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Errors that a user can act on become one line and exit code 1."""
    try:
        yield
    except (ClipchoirError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from error


def _with_progress(results: Iterator[Classification], total: int) -> Iterator[Classification]:
    if not errors.is_terminal:
        return results
    return iter(track(results, "classifying", total, console=errors, transient=True))


def _noting_failures(results: Iterator[Classification], failed: list[Classification]) -> Iterator[Classification]:
    for result in results:
        if result.error:
            failed.append(result)
        yield result


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--weights must be numbers separated by commas, as in 0.6,0.4; got {weights!r}"
        ) from None
