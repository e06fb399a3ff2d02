"""Arguments of `clipchoir-server`."""

import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clipchoir_server.triton import Address, ServerError, serving

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="Model repository, as built by clipchoir-export build.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics port; 0 picks a free one.")] = 8002,
    load_timeout: Annotated[float, typer.Option(help="Seconds the models may take to load.")] = 600.0,
) -> None:
    """Serve a model repository with a real tritonserver, without Docker; Ctrl-C or SIGTERM stops it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        address = Address.choose(host, grpc_port, http_port, metrics_port)
        with serving(repository, address, load_timeout) as triton:
            print(
                f"serving {repository}: gRPC {address.grpc}, HTTP {address.http}, "
                f"metrics {address.metrics}/metrics; Ctrl-C stops",
                flush=True,
            )
            triton.wait()
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("stopped", flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
