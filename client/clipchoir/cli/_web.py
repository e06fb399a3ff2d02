"""clipchoir web"""

import os
import socket
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from clipchoir._client import Client
from clipchoir._core import BATCH_SIZE
from clipchoir._label_set import LabelSet
from clipchoir.cli._app import app, reporting
from clipchoir.cli._html import HINT, STYLE, cards, head, problem
from clipchoir.cli._optional_imports import needed
from clipchoir.cli._options import Server, grouped
from clipchoir.errors import ClipchoirError

_SERVERS, _OWN = "of the server", "your own classes"
_LAST_ANSWERS = 1  # seconds that requests in flight, and pages that are open, have at the end


@app.command()
@grouped
def web(
    server: Server,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 7860,
    open_: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open a browser. Default: where there is a desktop.")
    ] = None,
) -> None:
    """Try images and label sets on a local web page. Ctrl-C stops it."""
    with (
        reporting(lambda: "stopped"),
        tempfile.TemporaryDirectory(prefix="clipchoir-web-", ignore_cleanup_errors=True) as uploads,
        server.client() as client,
    ):
        label_sets = client.label_sets() if client.service else {}
        with _listen(host, port) as listener:
            _set_up_gradio(uploads)
            gradio, fastapi, uvicorn = needed("web", "gradio", "fastapi", "uvicorn")
            site = gradio.mount_gradio_app(
                fastapi.FastAPI(),
                Page(client, gradio).build(", ".join(server.url), label_sets),
                path="/",
                footer_links=[],
                ssr_mode=False,
                theme=gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=STYLE,
            )
            url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            print(f"the page is at {url}; Ctrl-C stops it", flush=True)
            if _has_desktop() if open_ is None else open_:
                webbrowser.open(url)
            config = uvicorn.Config(site, log_level="critical", ws="none", timeout_graceful_shutdown=_LAST_ANSWERS)
            uvicorn.Server(config).run(sockets=[listener])


def _set_up_gradio(uploads: str) -> None:
    """Before it is imported: it sends nothing anywhere, and keeps nothing after the end."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": uploads,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _listen(host: str, port: int) -> socket.socket:
    """Connections wait from now on until they are served."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ClipchoirError(f"cannot listen: {error.strerror or error}; --host and --port name another") from error


def _has_desktop() -> bool:
    display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) and sys.stdout.isatty()


@dataclass(frozen=True)
class Page:
    """The page and what it does.

    Attributes:
        client: of the server.
        gradio: the module, which is loaded late.
    """

    client: Client
    gradio: Any

    def classify(
        self,
        images: list[str] | None,
        kind: str,
        name: str | None,
        classes: str,
        templates: str,
        weighted: bool,
        *weights: float,
    ) -> str:
        """Results as HTML, or why there are none.

        Args:
            images: paths of the uploads.
            kind: whether the label set is the server's or the user's own.
            name: of the server's set.
            classes: of the own set, one a line.
            templates: of the own set, one a line.
            weighted: whether `weights` count, or the server's.
            weights: of the encoders.
        """
        if not images:
            return HINT
        try:
            results = self.client.classify(
                images,
                batch_size=min(BATCH_SIZE, self.client.service.max_batch_size),
                label_set=LabelSet(_lines(classes), _lines(templates) or None) if kind == _OWN else name or None,
                weights=weights if weighted else None,
            )
        except ClipchoirError as error:
            return problem(str(error))
        return cards(results, images)

    def build(self, url: str, label_sets: dict[str, Any]) -> Any:
        """The page as Gradio's blocks.

        Args:
            url: of the server, to show.
            label_sets: what the server says of them.
        """
        gradio, service = self.gradio, self.client.service
        with gradio.Blocks(title="clipchoir", analytics_enabled=False) as page:
            gradio.HTML(head(url, service.encoders, service.version), apply_default_css=False)
            with gradio.Row():
                with gradio.Column(scale=2, min_width=320):
                    images = gradio.File(label="Images", file_count="multiple", height=180)
                    kind = gradio.Radio([_SERVERS, _OWN], value=_SERVERS, label="Label set")
                    name = gradio.Dropdown(**_choices(label_sets), label="Name", allow_custom_value=True)
                    with gradio.Group(visible=False) as own:
                        classes = gradio.Textbox("", label="Classes, one a line", lines=6, max_lines=12)
                        templates = gradio.Textbox(
                            "a photo of {}.", label="Templates, one a line, {} for the class", lines=3, max_lines=12
                        )
                    weighted = gradio.Checkbox(label="Weigh the encoders", visible=len(service.encoders) > 1)
                    with gradio.Group(visible=False) as balance:
                        weights = [gradio.Slider(0, 1, 0.5, step=0.01, label=each) for each in service.encoders]
                    button = gradio.Button("Classify", variant="primary")
                with gradio.Column(scale=4, min_width=420):
                    results = gradio.HTML(HINT, elem_id="results", apply_default_css=False)
            page.load(self._refresh, outputs=[name, results])
            kind.change(self._switch, [kind, name, classes], [name, own, classes])
            weighted.change(lambda on: gradio.update(visible=on), weighted, balance)
            gradio.on(
                [button.click, images.change, name.select, *(each.release for each in weights)],
                self.classify,
                [images, kind, name, classes, templates, weighted, *weights],
                results,
                trigger_mode="always_last",
                concurrency_limit=None,
            )
        return page

    def _refresh(self) -> tuple[Any, Any]:
        """Label sets may have been added since the start."""
        try:
            return self.gradio.update(**_choices(self.client.label_sets())), self.gradio.skip()
        except ClipchoirError as error:
            return self.gradio.skip(), problem(str(error))

    def _switch(self, kind: str, name: str | None, classes: str) -> tuple[Any, Any, str]:
        """Own classes begin with those of the server's set."""
        own = kind == _OWN
        if own and name and not classes.strip():
            try:
                classes = "\n".join(self.client.label_set(name)["classes"])
            except ClipchoirError:  # the set is the user's to write
                classes = ""
        return self.gradio.update(visible=not own), self.gradio.update(visible=own), classes


def _choices(label_sets: dict[str, Any]) -> dict[str, Any]:
    """Label sets that the dropdown offers."""
    sets = label_sets["label_sets"].items()
    choices = [(f"{name} ({numbers['classes']} classes)", name) for name, numbers in sets]
    return {"choices": choices, "value": label_sets["default"]}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
