"""clipchoir status"""

import dataclasses
import math
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipchoir._protocol import MODEL
from clipchoir._status import Status
from clipchoir.cli._app import NO_SERVER, app, print_json, reporting
from clipchoir.cli._options import AsJson, Server, grouped


@app.command()
@grouped
def status(
    server: Server,
    seconds: Annotated[float, typer.Option(min=0, help="How long to watch for the throughput; 0: not at all.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """What the server has: models, versions, queues, throughput. Exit code 4: it is not ready."""
    with reporting(), server.client() as client:
        before, start = client.status(), time.monotonic()
        time.sleep(seconds)
        after, took = client.status(), time.monotonic() - start
    speeds = [
        (new.rows(MODEL) - old.rows(MODEL)) / took if seconds else math.nan
        for old, new in zip(before, after, strict=True)
    ]
    if as_json:
        print_json([_as_json(each, speed) for each, speed in zip(after, speeds, strict=True)])
    else:
        for each, speed in zip(after, speeds, strict=True):
            _print(each, speed)
    if not all(each.ready and each.service for each in after):
        raise typer.Exit(NO_SERVER)


def _as_json(each: Status, speed: float) -> dict[str, Any]:
    return {**dataclasses.asdict(each), "images_per_second": speed}


def _print(each: Status, speed: float) -> None:
    console = Console()
    state = "ready" if each.ready else "not ready"
    console.print(Text(f"{each.url}: Triton {each.version}, {state}"), highlight=False)
    if each.service:
        service = each.service
        about = f"encoders {', '.join(service.encoders)}; default label set {service.default_label_set}"
        console.print(Text(f"{about}; version {service.version}"), highlight=False)
    else:
        console.print(Text(f"no model {MODEL} of clipchoir's"), style="red")
    table = Table("model", "version", "state", "images", "per batch", "failed", "queue ms", "compute ms", box=None)
    for model in each.models:
        batch = f"{model.rows / model.executions:.1f}" if model.executions else "-"
        numbers = ["-" if math.isnan(value) else f"{value:.2f}" for value in (model.queue_ms, model.compute_ms)]
        cells = (model.name, model.version, f"{model.state} {model.reason}".strip(), str(model.rows), batch)
        table.add_row(*map(Text, (*cells, str(model.failures), *numbers)))
    console.print(table)
    if not math.isnan(speed):
        console.print(f"{speed:.1f} images/s now", highlight=False)
