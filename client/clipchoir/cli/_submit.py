"""clipchoir submit"""

import csv
import os
from pathlib import Path
from typing import Annotated

import typer

from clipchoir.cli._app import SOME_IMAGES_FAILED, app, complain, print_json, progress, reporting
from clipchoir.cli._options import BATCH, AsJson, BatchSize, Paths, Scoring, Server, grouped
from clipchoir.cli._sources import Sources


@app.command()
@grouped
def submit(
    paths: Paths,
    server: Server,
    scoring: Scoring,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("submission.csv"),
    names: Annotated[bool, typer.Option("--names", help="Write names of classes, not their numbers from 0.")] = False,
    as_json: AsJson = False,
    batch_size: BatchSize = BATCH,
) -> None:
    """Write a challenge's CSV: `id_idx,label`, one line per image in natural order, both counted from 0.

    Every image needs a label: if one cannot be classified, nothing is written.
    """
    with reporting():
        sources = Sources(paths)
        options = scoring.options()
        if not out.parent.is_dir():
            raise NotADirectoryError(f"{out.parent} is not a folder")
        rows: list[tuple[int, str | int]] = []
        failed = 0
        with server.client() as client, progress("classifying", sources.count) as passing:
            for result in passing(client.stream(sources, batch_size=batch_size, **options)):
                if result.error:
                    failed += 1
                    complain(f"{result.source}: {result.error}")
                    continue
                rows.append((result.index, result.label if names else result.classes.index(result.label)))
        if failed:
            complain(f"{failed} images have no label; {out} was not written")
            raise typer.Exit(SOME_IMAGES_FAILED)
        scratch = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with scratch.open("w", newline="", encoding="utf-8") as file:
                lines = csv.writer(file, lineterminator="\n")
                lines.writerow(["id_idx", "label"])
                lines.writerows(rows)
            scratch.replace(out)
        finally:
            scratch.unlink(missing_ok=True)
    if as_json:
        print_json({"out": str(out), "images": len(rows)})
    else:
        print(f"{len(rows)} labels; wrote {out}")
