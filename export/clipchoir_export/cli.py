"""Arguments of `clipchoir-export`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from clipchoir_export.errors import REPORTED
from clipchoir_export.spec import find_ensemble, load_ensemble, read_label_set

app = typer.Typer(
    help="Turn CLIP checkpoints into a Triton model repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)

Ensemble = Annotated[
    str, typer.Argument(help="Ensemble spec: a .toml file, or a name that `clipchoir-export list` shows.")
]


class Verify(str, Enum):
    """How thoroughly to compare what was written with the checkpoint."""

    FULL = "full"
    SAMPLE = "sample"
    OFF = "off"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clipchoir-export {version('clipchoir')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def build(
    ensemble: Ensemble,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder to write; default build/<name of the ensemble>.", show_default=False),
    ] = None,
    verify: Annotated[
        Verify,
        typer.Option(
            help="Compare each encoder with its checkpoint: on 32 images in batches of 1, 2, 5 and 32; on a sample of "
            "4 where the encoder is large; or not at all."
        ),
    ] = Verify.SAMPLE,
    link_weights: Annotated[
        bool,
        typer.Option("--link-weights", help="Leave weights in the checkpoint's files, by hard links, where they fit."),
    ] = False,
    text_encoders: Annotated[
        bool, typer.Option("--text-encoders", help="Make the text towers Triton models as well.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing; use what was downloaded before.")
    ] = False,
) -> None:
    """Build the model repository of an ensemble: export and verify its encoders, embed its label sets.

    An interrupted build goes on where it was when it is started again. Where the repository exists, what changed gets
    a new version folder.
    """
    with _reporting():
        path = find_ensemble(ensemble)
        spec = load_ensemble(path)
        # Takes seconds to import: not before the spec is right.
        from clipchoir_export.build.encoder import BuildOptions
        from clipchoir_export.build.repository import build_repository

        target = repository or Path("build") / spec.name
        options = BuildOptions(verify.value, link_weights, text_encoders, offline)
        with _resumable_progress() as progress:
            new = build_repository(spec, path, target, progress, options)
    done = f"built {target} ({', '.join(new)})" if new else f"{target} is up to date"
    console.print(f"{done}; serve it with: clipchoir-server {target}", soft_wrap=True, highlight=False)


@app.command()
def refresh(
    repository: Annotated[Path, typer.Argument(help="A model repository that clipchoir built.")],
) -> None:
    """Renew a repository's Python steps and configs, as after an upgrade, without its checkpoints.

    What changed gets a new version folder; encoders and label sets stay. An interruption changes nothing.
    """
    with _reporting():
        from clipchoir_export.build.refresh import refresh_repository

        new = refresh_repository(repository)
    _say(f"refreshed {repository} ({', '.join(new)})" if new else f"{repository} is up to date")


@app.command()
def embed(
    repository: Annotated[Path, typer.Argument(help="A model repository built with --text-encoders.")],
    label_set: Annotated[
        str, typer.Argument(help="A .toml or .json file, or the name of a label set that comes with clipchoir.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What requests shall call it; default the file's name.", show_default=False)
    ] = None,
) -> None:
    """Embed a label set ahead of time, of any size, and add it to the repository. A running server takes it up.

    An interrupted run goes on where it was when it is started again.
    """
    with _reporting():
        found = read_label_set(label_set, name)
        from clipchoir_export.build.label_sets import embed_label_set

        with _resumable_progress() as progress:
            file, is_new = embed_label_set(repository, found, progress)
    done = "embedded" if is_new else "is up to date:"
    counts = f"{len(found.classes):,} classes, {sum(found.prompt_counts()):,} prompts"
    _say(f"{found.name} {done} {counts} in {file}; requests name it as label_set={found.name}")


@contextlib.contextmanager
def _resumable_progress() -> Iterator[Progress]:
    """A progress display around work that goes on where it was after Ctrl-C."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            yield progress
    except KeyboardInterrupt:
        console.print("interrupted; what was finished is kept, and the same command goes on from there", style="red")
        raise typer.Exit(130) from None


class _Amount(ProgressColumn):
    """How much of a task is done, in its own unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if task.total is None:
            return Text("tracing the graph")
        if unit == "bytes":
            return Text(f"{decimal(int(task.completed))} of {decimal(int(task.total))}")
        return Text(f"{task.completed:.0f} of {task.total:.0f} {unit}")


@app.command()
def source(
    ensemble: Ensemble,
    repository: Annotated[Path, typer.Argument(help="Folder to write into.")],
) -> None:
    """Write a repository's configs and Python alone: what Triton reads at its start, before any weight is there."""
    with _reporting():
        path = find_ensemble(ensemble)
        spec = load_ensemble(path)
        from clipchoir_export.build.steps import write_source
        from clipchoir_export.families.registry import describe_all

        write_source(spec, describe_all(spec, path), repository)


@app.command(name="list")
def list_presets(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
) -> None:
    """List the ensembles that come with clipchoir: their encoders, what these cost, and the weights' licences."""
    with _reporting():
        from clipchoir_export import presets

        rows = presets.presets()
        if markdown:
            print(presets.markdown(rows))
            return
        table = Table(*presets.HEADINGS, box=box.SIMPLE)
        for row in rows:
            table.add_row(*row.row(), end_section=row is rows[-1])
        _output().print(table)


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="A model repository that clipchoir built.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show what is in a repository, and whether it is complete and belongs together; exit code 1 if not."""
    with _reporting():
        from clipchoir_export import inspection

        found = inspection.inspect(repository)
        if as_json:
            print(json.dumps(asdict(found), indent=2))
        else:
            table = Table(*inspection.HEADINGS, box=box.SIMPLE)
            for model in found.models:
                table.add_row(*model.row())
            _output().print(table)
            for name, classes in found.label_sets.items():
                listed = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
                _output().print(f"label set {name}: {len(classes)} classes: {listed}", markup=False, soft_wrap=True)
        for problem in found.problems:
            console.print(f"problem: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        if found.problems:
            raise typer.Exit(1)


@app.command()
def tensorrt(
    repository: Annotated[Path, typer.Argument(help="A model repository that clipchoir built.")],
    opt_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Batch size to tune the engines for; default 32, or the largest.", show_default=False),
    ] = None,
) -> None:
    """Write what building TensorRT engines needs: for each encoder a config, and a script that builds and checks."""
    with _reporting():
        from clipchoir_export.tensorrt.engines import SERVE, build_command, write_engine_builds

        for model in write_engine_builds(repository, opt_batch):
            _say(f"{model}: wrote {model}/configs/tensorrt.pbtxt, {model}/tensorrt/build.sh and what that needs")
        _say("build and check the engines, with TRITON_IMAGE set to NVIDIA's tritonserver image:")
        _output().print(build_command(repository), soft_wrap=True, markup=False)
        _say(f"then serve them with: {SERVE}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _output() -> Console:
    """Standard output; as wide as the table where it is not a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Errors that a user can act on become their message and exit code 1."""
    try:
        yield
    except (*REPORTED, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
