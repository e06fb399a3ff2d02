"""clipchoir embed"""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipchoir._client import Client
from clipchoir.cli._app import SOME_IMAGES_FAILED, app, print_json, progress, reporting
from clipchoir.cli._embeddings import ResumableFolder, rows_of, write_parquet
from clipchoir.cli._optional_imports import needed
from clipchoir.cli._options import BATCH, AsJson, BatchSize, Paths, Server, check_one_of, grouped
from clipchoir.cli._resumable_output import Begin, how_to_begin, partial_of
from clipchoir.cli._sources import Sources
from clipchoir.cli._version_guard import RepositoryChangedError, watched
from clipchoir_steps import atomic


def embedding_ids(client: Client) -> dict[str, str]:
    """What makes the server's embeddings what they are, by encoder; a server of an older build does not say it."""
    return dict(client.label_sets().get("embedding_ids", {}))


def fill(store: ResumableFolder, client: Client, sources: Sources, batch_size: int) -> None:
    """Embed the images that are not in the store yet, and give it its name."""
    images = iter(sources)
    done = store.log.skip(images)
    with progress("embedding", sources.count, done) as passing:
        try:
            for result in watched(client, passing(client.embed(images, batch_size=batch_size))):
                store.write(result)
        except RepositoryChangedError as error:
            store.log.cut(done + error.certain)
            raise
    store.finish()


@app.command()
@grouped
def embed(
    paths: Paths,
    server: Server,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="A new folder for <encoder>.npy, float32 (N, D), and rows.jsonl; or a .parquet file.",
            show_default=False,
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    as_json: AsJson = False,
    batch_size: BatchSize = BATCH,
) -> None:
    """Write the embeddings of images by every encoder, in natural order."""
    check_one_of(resume=resume, overwrite=overwrite)
    as_parquet = out.suffix == ".parquet"
    with (
        reporting(lambda: f"interrupted; go on with --resume, the rows so far are kept beside {out}"),
        contextlib.ExitStack() as stack,
    ):
        sources = Sources(paths)
        if as_parquet:
            needed("parquet", "pyarrow")
        client = stack.enter_context(server.client())
        dims = client.service.dims
        # A Parquet file is made of a folder beside it, since rows cannot be added to it later.
        folder = out.with_name(out.name + ".rows") if as_parquet else out
        begun = partial_of(folder)
        is_new = as_parquet and not (folder.exists() or begun.exists())
        if is_new and how_to_begin(out, begun, resume=resume, overwrite=overwrite) is Begin.NOTHING:
            print(f"{out} is complete", file=sys.stderr)
            return
        ids = embedding_ids(client)
        store = stack.enter_context(ResumableFolder(folder, dims, ids, resume=resume, overwrite=overwrite))
        if store.is_complete and not as_parquet:
            print(f"{out} is complete", file=sys.stderr)
            return
        if not store.is_complete:
            fill(store, client, sources, batch_size)
        count, failed = 0, 0
        for row in rows_of(folder):
            count, failed = count + 1, failed + ("error" in row)
        if as_parquet:
            with atomic.replacing(out) as target:
                write_parquet(folder, dims, target)
            shutil.rmtree(folder)
        if as_json:
            print_json({"out": str(out), "images": count, "failed": failed, "dims": dict(dims)})
        else:
            print(f"{count} images, {failed} of them failed; wrote {out}", file=sys.stderr)
        if failed:
            raise typer.Exit(SOME_IMAGES_FAILED)
