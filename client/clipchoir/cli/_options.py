"""Options that several commands share, as dataclasses that become options of a command."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from clipchoir._client import Client
from clipchoir._connection import COMPRESSIONS, ConnectionOptions, Tls
from clipchoir._core import BATCH_SIZE, URL
from clipchoir._label_set import LabelSet
from clipchoir._options import Options
from clipchoir_steps.scoring.options import PARAMETERS, Parameter

_SERVER, _SCORING = "Server", "Scoring"
_DEFAULTS = ConnectionOptions()
_TABLE = "table"  # the field of a group that stands for one option for each entry of the scoring table
LABEL_SET_FILES = (".toml", ".json")


def _server(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_SERVER, **more)


def _scoring(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_SCORING, **more)


def _table_option(entry: Parameter) -> Any:
    """The option of an entry in the table that the server reads requests by."""
    kind: Any = float if entry.bounds else str
    help_ = f"{entry.help} {entry.range[0].upper()}{entry.range[1:]}; default: the server's."
    return Annotated[kind | None, _scoring(help_)]


@dataclass(frozen=True)
class Server:
    """Where the server is and how to go there."""

    url: Annotated[
        list[str],
        _server("host:port of the server's gRPC endpoint; several share the work.", envvar="CLIPCHOIR_URL"),
    ] = dataclasses.field(default_factory=lambda: [URL])
    timeout: Annotated[float, _server("Seconds that an answer may take.", min=0.001)] = _DEFAULTS.timeout
    patience: Annotated[
        float, _server("Seconds to try again for while the server is away or has too much to do.", min=0)
    ] = _DEFAULTS.patience
    concurrency: Annotated[int, _server("Requests in flight at each server.", min=1)] = _DEFAULTS.concurrency
    tls: Annotated[bool, _server("Encrypt the connection.")] = False
    tls_ca: Annotated[
        Path | None, _server("PEM file of the authorities to trust; default: the system's.", envvar="CLIPCHOIR_TLS_CA")
    ] = None
    tls_cert: Annotated[Path | None, _server("PEM file of a certificate of your own.", envvar="CLIPCHOIR_TLS_CERT")] = (
        None
    )
    tls_key: Annotated[Path | None, _server("PEM file of its key.", envvar="CLIPCHOIR_TLS_KEY")] = None
    token: Annotated[
        str | None, _server("Sent as `authorization: Bearer TOKEN`.", envvar="CLIPCHOIR_TOKEN", show_envvar=True)
    ] = None
    header: Annotated[list[str], _server("A header for every request, as in 'name: value'; repeatable.")] = (
        dataclasses.field(default_factory=list)
    )
    compression: Annotated[str | None, _server(f"Of requests: {' or '.join(COMPRESSIONS)}.")] = None

    def client(self) -> Client:
        """A client with these options.

        Raises:
            typer.BadParameter: an option makes no sense.
        """
        try:
            return Client(
                self.url,
                timeout=self.timeout,
                patience=self.patience,
                concurrency=self.concurrency,
                tls=self._tls(),
                headers=self._headers(),
                compression=self.compression,
            )
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from error

    def _tls(self) -> Tls | bool:
        if not (self.tls or self.tls_ca or self.tls_cert or self.tls_key):
            return False
        return Tls(self.tls_ca, self.tls_cert, self.tls_key)

    def _headers(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        for text in self.header:
            name, colon, value = text.partition(":")
            if not colon or not name.strip():
                raise typer.BadParameter(f"--header must be 'name: value', got {text!r}")
            headers[name.strip()] = value.strip()
        return headers


@dataclass(frozen=True)
class Scoring:
    """How images are scored."""

    label_set: Annotated[
        str | None, _scoring("Name of a label set of the server, or a .toml or .json file; default: the server's.")
    ] = None
    class_: Annotated[list[str], _scoring("A class of your own; repeatable.", metavar="NAME")] = dataclasses.field(
        default_factory=list, metadata={"name": "--class"}
    )
    template: Annotated[
        list[str], _scoring("A prompt for each --class, with {} for its name; repeatable. Default: the name alone.")
    ] = dataclasses.field(default_factory=list)
    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # one option for each entry of PARAMETERS
    priority: Annotated[int | None, _scoring("1 (first) to 3; default: the server's, 2.", min=1, max=3)] = None

    def options(self) -> Options:
        """Keywords of the client.

        Raises:
            typer.BadParameter: they contradict each other, or are no numbers.
            BadLabelSetFileError: the label set's file cannot be read.
        """
        given = {**self.table, "weights": self._weights(self.table.get("weights"))}
        return cast("Options", {"label_set": self._label_set(), **given, "priority": self.priority})

    def _label_set(self) -> str | LabelSet | None:
        if self.class_:
            if self.label_set:
                raise typer.BadParameter("give either --label-set or --class")
            return LabelSet(self.class_, self.template or None)
        if self.template:
            raise typer.BadParameter("--template belongs to --class")
        if self.label_set and Path(self.label_set).suffix in LABEL_SET_FILES:
            return LabelSet.from_file(self.label_set)
        return self.label_set

    def _weights(self, text: str | None) -> list[float] | None:
        if text is None:
            return None
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(
                f"--weights must be numbers separated by commas, as in 0.6,0.4; got {text!r}"
            ) from None


BatchSize = Annotated[int, typer.Option(min=1, help="Images per request.")]
BATCH = BATCH_SIZE
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Paths = Annotated[
    list[str],
    typer.Argument(
        help="Image files, folders to search for them, patterns in quotes ('**/*.jpg'), .tar shards, "
        "or - for a list of paths on standard input.",
        show_default=False,
    ),
]


def check_one_of(*, resume: bool, overwrite: bool) -> None:
    """Raises typer.BadParameter if both are given."""
    if resume and overwrite:
        raise typer.BadParameter("give either --resume or --overwrite")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type become one option for each field."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _parameters(groups[parameter.name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{each.name: _value(each, values) for each in dataclasses.fields(group)})  # type: ignore[operator]
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _value(field: Any, values: dict[str, Any]) -> Any:
    if field.name == _TABLE:
        return {name: values.pop(name) for name in PARAMETERS}
    return values.pop(field.name)


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for each in dataclasses.fields(group):
        if each.name == _TABLE:
            parameters += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_table_option(entry))
                for name, entry in PARAMETERS.items()
            ]
            continue
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        hint = hints[each.name]
        if "name" in each.metadata:  # an option whose name is a word of Python's
            kind, option = hint.__origin__, hint.__metadata__[0]
            option.param_decls = (each.metadata["name"],)
            hint = Annotated[kind, option]
        parameters.append(
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        )
    return parameters
