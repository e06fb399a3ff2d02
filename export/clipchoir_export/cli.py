"""Arguments of `clipchoir-export`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from clipchoir_export.errors import ExportError
from clipchoir_export.spec import find_ensemble, load_ensemble

app = typer.Typer(
    help="Turn CLIP checkpoints into a Triton model repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

Ensemble = Annotated[str, typer.Argument(help="Ensemble spec: a .toml file, or `demo` or `scenes`.")]


@app.command()
def build(
    ensemble: Ensemble,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder to write; default build/<name of the ensemble>.", show_default=False),
    ] = None,
) -> None:
    """Build the model repository of an ensemble: export and verify its encoders, embed its label sets."""
    with _reporting():
        path = find_ensemble(ensemble)
        spec = load_ensemble(path)
        from clipchoir_export.repository import build_repository  # takes seconds: not before the spec is right

        target = repository or Path("build") / spec.name
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            build_repository(spec, path, target, progress)
    console.print(f"built {target}; serve it with: clipchoir-server {target}", soft_wrap=True)


@app.command()
def source(
    ensemble: Ensemble,
    repository: Annotated[Path, typer.Argument(help="Folder to write into.")],
) -> None:
    """Write a repository's configs and Python alone: what Triton will be told, before any weight is there."""
    with _reporting():
        path = find_ensemble(ensemble)
        spec = load_ensemble(path)
        from clipchoir_export.encoders import describe_all
        from clipchoir_export.repository import write_source

        write_source(spec, describe_all(spec, path), repository)


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Errors that a user can act on become their message and exit code 1."""
    try:
        yield
    except (ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
