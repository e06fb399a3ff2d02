"""clipchoir classify"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from clipchoir._client import Client
from clipchoir._options import Options, split
from clipchoir._protocol import Service
from clipchoir.cli._app import SOME_IMAGES_FAILED, app, progress, reporting
from clipchoir.cli._optional_imports import needed
from clipchoir.cli._options import BATCH, AsJson, BatchSize, Paths, Scoring, Server, check_one_of, grouped
from clipchoir.cli._resumable_output import ResumableFile, RowLog
from clipchoir.cli._sources import Named, Sources
from clipchoir.cli._version_guard import RepositoryChangedError, watched
from clipchoir.cli._writers import Format, Record, line, record, write

_FLUSH_ROWS = 16  # that a killed run may lose


@app.command()
@grouped
def classify(
    paths: Paths,
    server: Server,
    scoring: Scoring,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to this file: .jsonl, .csv or .parquet.", metavar="FILE")
    ] = None,
    output_format: Annotated[
        Format | None, typer.Option("--format", help="Default: by the suffix of --out, else a table.")
    ] = None,
    as_json: AsJson = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    errors: Annotated[
        Path | None, typer.Option("--errors", help="Write a line of JSON for each image that failed.", metavar="FILE")
    ] = None,
    batch_size: BatchSize = BATCH,
) -> None:
    """Classify images: one row for each, in natural order."""
    chosen = _format(output_format, as_json, out)
    if (resume or overwrite) and out is None:
        raise typer.BadParameter("--resume and --overwrite go with --out")
    check_one_of(resume=resume, overwrite=overwrite)
    with reporting(lambda: _where_it_is(out)), contextlib.ExitStack() as stack:
        sources = Sources(paths)
        options = scoring.options()
        if chosen is Format.parquet:
            needed("parquet", "pyarrow")
        client = stack.enter_context(server.client())
        service = client.service  # before anything is written: a server that is away changes nothing
        output = None
        if out:
            settings = _settings(options, client, service)
            output = stack.enter_context(ResumableFile(out, settings, resume=resume, overwrite=overwrite))
            if output.is_complete:
                print(f"{out} is complete", file=sys.stderr)
                return
        failures = _Failures(stack.enter_context(errors.open("w", encoding="utf-8")) if errors else None)
        images = iter(sources)
        done = output.log.skip(images, failures.note) if output else 0
        with progress("classifying", sources.count, done) as passing:
            records = watched(client, failures.noted(passing(_records(client, images, options, batch_size))))
            if output:
                try:
                    _keep(output.log, records)
                except RepositoryChangedError as error:
                    output.log.cut(done + error.certain)
                    raise
                output.finish(chosen)
            else:
                write(records, chosen, sys.stdout)
        if failures.count:
            raise typer.Exit(SOME_IMAGES_FAILED)


def _records(client: Client, images: Iterator[Named], options: Options, batch_size: int) -> Iterator[Record]:
    return map(record, client.stream(images, batch_size=batch_size, **options))


def _keep(log: RowLog, records: Iterator[Record]) -> None:
    for number, each in enumerate(records, 1):
        log.write(each)
        if number % _FLUSH_ROWS == 0:
            log.flush()


def _format(output_format: Format | None, as_json: bool, out: Path | None) -> Format:
    if as_json:
        other = output_format or (Format.of(out) if out else None)
        if other not in (None, Format.jsonl):
            raise typer.BadParameter(f"--json contradicts {other.value}")
        return Format.jsonl
    chosen = output_format or (Format.of(out) if out else Format.table)
    if chosen is None:
        raise typer.BadParameter(f"{out} ends in none of .jsonl, .csv, .parquet; or give --format")
    if out and chosen is Format.table:
        raise typer.BadParameter("a table is for reading: --out takes jsonl, csv or parquet")
    if not out and chosen is Format.parquet:
        raise typer.BadParameter("--format parquet needs --out FILE")
    return chosen


def _settings(options: Options, client: Client, service: Service) -> dict[str, str]:
    """What makes the rows what they are."""
    label_set, parameters = split(options)
    parameters.pop("priority", None)
    found = {"repository": service.version, "label_set": service.default_label_set, **parameters}
    if label_set:
        return found | {"label_set": label_set.spec}
    # A set of the repository may be changed in its place.
    content = json.dumps(client.label_set(found["label_set"]), sort_keys=True)
    return found | {"label_set_sha256": hashlib.sha256(content.encode()).hexdigest()}


def _where_it_is(out: Path | None) -> str:
    return f"interrupted; go on with --resume, the rows so far are kept beside {out}" if out else "interrupted"


class _Failures:
    """Images without an answer."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.count = 0

    def note(self, row: Record) -> None:
        if "error" in row:
            self.count += 1
            if self._file:
                self._file.write(line(row))

    def noted(self, rows: Iterator[Record]) -> Iterator[Record]:
        for row in rows:
            self.note(row)
            yield row
