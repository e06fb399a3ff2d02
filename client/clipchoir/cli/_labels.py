"""clipchoir labels"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipchoir._label_set import LabelSet
from clipchoir.cli._app import SOME_IMAGES_FAILED, app, print_json, reporting
from clipchoir.cli._options import LABEL_SET_FILES, AsJson, Server, grouped
from clipchoir.cli._sources import Sources
from clipchoir.cli._writers import Format, record, write

labels = typer.Typer(help="Label sets: those of the server, and files of your own.", no_args_is_help=True)
app.add_typer(labels, name="labels")

SetFile = Annotated[Path, typer.Argument(help="A .toml or .json file with classes, templates, extra.", metavar="FILE")]


@labels.command("list")
@grouped
def list_(server: Server, as_json: AsJson = False) -> None:
    """The named label sets of the server."""
    with reporting(), server.client() as client:
        answer = client.label_sets()
    if as_json:
        print_json(answer)
        return
    table = Table("label set", "classes", "prompts", "", box=None)
    for name, numbers in answer["label_sets"].items():
        default = "default" if name == answer["default"] else ""
        table.add_row(Text(name), str(numbers["classes"]), str(numbers["prompts"]), default)
    Console().print(table)


@labels.command()
@grouped
def show(
    name: Annotated[str, typer.Argument(help="Name or id of a label set, or a .toml or .json file that was used.")],
    server: Server,
    as_json: AsJson = False,
) -> None:
    """Classes and prompts of one set, as the server has them."""
    with reporting(), server.client() as client:
        wanted = LabelSet.from_file(name) if Path(name).suffix in LABEL_SET_FILES else name
        answer = client.label_set(wanted)
    if as_json:
        print_json(answer)
        return
    for class_name, prompts in answer["prompts"].items():
        Console().print(Text(f"{class_name} ({len(prompts)})", style="bold"))
        for prompt in prompts:
            Console().print(Text(f"    {prompt}"))


@labels.command()
@grouped
def check(file: SetFile, server: Server, as_json: AsJson = False) -> None:
    """Whether the server would take a label set, without embedding it. Exit code 1: it would not."""
    with reporting(), server.client() as client:
        answer = client.check(LabelSet.from_file(file))
    if as_json:
        print_json(answer)
        return
    state = "embedded already" if answer["known"] else "will be embedded on first use"
    print(f"{file} is good: {answer['classes']} classes, {answer['prompts']} prompts, {state}; id {answer['id']}")
    for prompt in answer["cut"]:
        print(f"longer than the encoders read: {prompt}")


@labels.command("try")
@grouped
def try_(
    file: SetFile,
    images: Annotated[list[str], typer.Argument(help="Images and folders.")],
    server: Server,
    as_json: AsJson = False,
) -> None:
    """Classify a few images with a label set."""
    with reporting(), server.client() as client:
        results = client.classify(Sources(images), label_set=LabelSet.from_file(file))
        write(map(record, results), Format.jsonl if as_json else Format.table, sys.stdout)
    if any(result.error for result in results):
        raise typer.Exit(SOME_IMAGES_FAILED)
