"""clipchoir evaluate"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from natsort import natsorted
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipchoir._client import Client
from clipchoir._label_set import LabelSet
from clipchoir._options import Options
from clipchoir._results import Vector
from clipchoir.cli import _plots
from clipchoir.cli._app import SOME_IMAGES_FAILED, app, print_json, reporting
from clipchoir.cli._embed import embedding_ids, fill
from clipchoir.cli._embeddings import ROWS, BadEmbeddingsError, ResumableFolder, check_encoders, load, rows_of
from clipchoir.cli._evaluation import Evaluation, UnknownClassError
from clipchoir.cli._options import BATCH, AsJson, BatchSize, Scoring, Server, grouped
from clipchoir.cli._sources import BadSourceError, Sources
from clipchoir.cli._writers import Record

DROPS = "0,0.0005,0.001,0.002,0.005,0.01"


@dataclass(frozen=True)
class Trial:
    """Accuracy with another value of an option."""

    option: str
    value: str
    accuracy: float


@app.command()
@grouped
def evaluate(
    server: Server,
    scoring: Scoring,
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with one sub-folder of images per class.", show_default=False)
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Keep the embeddings in this folder; where it exists, they are taken from it.", metavar="DIR"
        ),
    ] = None,
    sweep_weights: Annotated[
        int, typer.Option(min=0, help="Try weights in this many steps from 0 to 1; 0: do not.", metavar="STEPS")
    ] = 0,
    sweep_drop_below: Annotated[
        str | None, typer.Option(help=f"Try values of --drop-below, as in {DROPS}.", metavar="VALUES")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots as PNG into this folder.", metavar="DIR")] = None,
    as_json: AsJson = False,
    batch_size: BatchSize = BATCH,
) -> None:
    """Measure accuracy on labelled images: the ensemble's, each encoder's, by class; agreement, reliability, sweeps.

    Every image is encoded once. Scores, and those of the sweeps, are made of its embeddings.
    """
    drops = _numbers(sweep_drop_below)
    with reporting(), contextlib.ExitStack() as stack:
        if plots:
            _plots.check()
        options = scoring.options()
        client = stack.enter_context(server.client())
        start = time.monotonic()
        store = embeddings or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "embeddings"
        if folder:
            _check_folder(client, folder, options)
        made_by = embedding_ids(client)
        if not store.exists():  # or goes on with one that was interrupted
            with ResumableFolder(store, client.service.dims, made_by, resume=True, overwrite=False) as filled:
                fill(filled, client, _labelled(folder), batch_size)
        rows = list(rows_of(store)) if (store / ROWS).exists() else []
        if folder:
            _check_same(store, rows, _labelled(folder))
        check_encoders(store, made_by)
        values = load(store, client.encoders)
        truths = ["" if "error" in row else Path(row["source"]).parent.name for row in rows]
        evaluation = Evaluation.count(truths, client.score(values, **options))
        seconds = time.monotonic() - start
        trials = list(_trials(client, values, truths, options, sweep_weights, drops))
    failed = [row for row in rows if "error" in row]
    if as_json:
        print_json(_as_json(evaluation, trials, failed, seconds))
    else:
        _print(evaluation, trials, failed, seconds)
    if plots:
        with reporting():
            _plots.write(plots, evaluation, [(each.option, each.value, each.accuracy) for each in trials])
    if failed:
        raise typer.Exit(SOME_IMAGES_FAILED)


def _labelled(folder: Path | None) -> Sources:
    """Images of a folder that has one sub-folder per class."""
    if folder is None:
        raise typer.BadParameter("give a folder of images, or --embeddings of an earlier run")
    if not folder.is_dir():
        raise BadSourceError(f"{folder} is not a folder")
    classes = natsorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise BadSourceError(f"{folder} has no sub-folders; evaluate needs one sub-folder per class")
    return Sources([str(path) for path in classes])


def _check_folder(client: Client, folder: Path, options: Options) -> None:
    """Before the images are encoded: each lies right in the folder of its class."""
    for name, _ in _labelled(folder):
        if Path(name).parent.parent != folder:
            raise BadSourceError(f"{name} lies deeper than {folder}/CLASS/IMAGE, so that its class is not certain")
    label_set = options.get("label_set") or client.service.default_label_set
    classes = label_set.classes if isinstance(label_set, LabelSet) else client.label_set(label_set)["classes"]
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in classes:
            raise UnknownClassError(f'folder "{path.name}" is not a class; the classes are {", ".join(classes)}')


def _check_same(store: Path, rows: list[Record], images: Sources) -> None:
    if [row["source"] for row in rows] != [name for name, _ in images]:
        raise BadEmbeddingsError(f"{store} is not of the images in this folder; leave one of the two out")


def _trials(
    client: Client,
    embeddings: Mapping[str, Vector],
    truths: list[str],
    options: Options,
    steps: int,
    drops: list[float],
) -> Iterator[Trial]:
    def accuracy(changed: Options) -> float:
        return Evaluation.count(truths, client.score(embeddings, **changed)).accuracy

    for weights in _weights(len(client.encoders), steps):
        value = ",".join(f"{weight:g}" for weight in weights)
        yield Trial("weights", value, accuracy({**options, "weights": weights}))
    for drop in drops:
        yield Trial("drop_below", f"{drop:g}", accuracy({**options, "drop_below": drop}))


def _weights(encoders: int, steps: int) -> Iterator[list[float]]:
    """All that add up to 1."""
    last = steps - 1
    if last < 1:
        return
    for parts in itertools.product(range(steps), repeat=encoders):
        if sum(parts) == last:
            yield [round(part / last, 4) for part in parts]


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"--sweep-drop-below must be numbers, as in {DROPS}; got {text!r}") from None


def _as_json(evaluation: Evaluation, trials: list[Trial], failed: list[Record], seconds: float) -> dict[str, Any]:
    return {
        **evaluation.as_json(),
        "failed": failed,
        "images_per_second": (evaluation.total + len(failed)) / seconds,
        "sweeps": [vars(each) for each in trials],
    }


def _print(evaluation: Evaluation, trials: list[Trial], failed: list[Record], seconds: float) -> None:
    console = Console()
    console.print(evaluation.render(), highlight=False)
    if trials:
        best = max(each.accuracy for each in trials)
        table = Table("option", "value", "accuracy", "", title="Sweeps", box=None)
        for each in trials:
            mark = "best" if each.accuracy == best else ""
            table.add_row(each.option, each.value, f"{each.accuracy:.2%}", mark)
        console.print("", table)
    images = evaluation.total + len(failed)
    console.print(f"\n{images} images in {seconds:.1f} s, {images / seconds:.0f} images/s", highlight=False)
    for row in failed:
        console.print(Text(f"{row['source']}: {row['error']}"))
