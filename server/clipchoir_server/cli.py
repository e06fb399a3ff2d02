"""Arguments of `clipchoir-server`."""

import signal
import sys
from contextlib import suppress
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clipchoir_server.supervision import RestartLimit, keep_serving
from clipchoir_server.triton import Address, ServerError, serving

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


class OnDeadStep(str, Enum):
    """What to do when tritonserver or one of its Python steps has died."""

    RESTART = "restart"
    EXIT = "exit"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clipchoir-server {version('clipchoir')}")
        raise typer.Exit


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="Model repository, as built by clipchoir-export build.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics port; 0 picks a free one.")] = 8002,
    load_timeout: Annotated[float, typer.Option(help="Seconds the models may take to load.")] = 600.0,
    config_name: Annotated[
        str | None, typer.Option(help="Variant of the models' configs: gpu for configs/gpu.pbtxt.")
    ] = None,
    on_dead_step: Annotated[
        OnDeadStep, typer.Option(help="When tritonserver or a Python step has died: start the server again, or exit.")
    ] = OnDeadStep.RESTART,
    restarts: Annotated[int, typer.Option(min=0, help="Restarts within --restart-window before giving up.")] = 5,
    restart_window: Annotated[float, typer.Option(min=0, help="Seconds in which restarts are counted.")] = 600.0,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve a model repository with a real tritonserver, without Docker; Ctrl-C or SIGTERM stops it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        address = Address.choose(host, grpc_port, http_port, metrics_port)
        message = (
            f"serving {repository}: gRPC {address.grpc}, HTTP {address.http}, "
            f"metrics {address.metrics}/metrics; Ctrl-C stops"
        )
        keep_serving(
            partial(serving, repository, address, load_timeout, config_name=config_name),
            RestartLimit(restarts if on_dead_step is OnDeadStep.RESTART else 0, restart_window),
            on_ready=partial(print, message, flush=True),
            report=_report,
        )
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("stopped", flush=True)


def _report(line: str) -> None:
    with suppress(OSError):  # a closed stderr is no reason to stop
        print(line, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
