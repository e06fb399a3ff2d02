"""Draw the pictures of the README again: a chart from stored results, a screenshot of the demo's web page.

    python -m tools.pictures

Each PNG carries what it shows as metadata, so that a test notices when results or page have changed since.
"""

import hashlib
import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect, sync_playwright

from benchmarks.service.report import shares
from clipchoir import Classification
from clipchoir.cli import _html, _web
from clipchoir_server.triton import Address, serving
from clipchoir_steps.atomic import replacing

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
CHART, SCREENSHOT = PICTURES / "chart.png", PICTURES / "web.png"
CARD = ROOT / "demo" / "checkpoints" / "demo-metaclip" / "README.md"
BENCH = ROOT / "benchmarks" / "results" / "bench.json"
SAMPLES = [ROOT / "demo" / "samples" / name for name in ("Mountains/mountains_03.jpg", "Buildings/buildings_09.jpg")]
SHOWN = "clipchoir"  # key of the metadata
COLOURS = {"part": "#64748b", "whole": "#4f46e5"}
WIDTH, HEIGHT = 1180, 790

Bars = dict[str, float]


def chart_data() -> dict[str, Bars]:
    """The chart's numbers: of the model card, and of the stored benchmark."""
    row = re.search(r"^\| all (\d+) scenes \| (\S+) \| (\S+) \| (\S+) \|$", CARD.read_text(), re.MULTILINE)
    assert row
    bench = json.loads(BENCH.read_text())
    share = shares(bench)
    base = max(value for key, value in share.items() if key[0] == "base")
    return {
        f"Wrong answers on {row[1]} scenes never trained on": {
            "demo-metaclip alone": round(1 - float(row[2]), 3),
            "demo-evaclip alone": round(1 - float(row[3]), 3),
            "ensemble": round(1 - float(row[4]), 3),
        },
        "Throughput as a share of the limit": {
            "demo pair, single images": round(share["demo", (224, 224), 1, 8], 2),
            "demo pair, batches of 32": round(share["demo", (224, 224), 32, 4], 2),
            "two ViT-B/16, batches of 8": round(base, 2),
        },
    }


def draw_chart(path: Path, data: dict[str, Bars]) -> None:
    """Two panels of bars."""
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        (mistakes, wrong), (throughput, ratios) = data.items()
        _bars(left, mistakes, wrong, ["part", "part", "whole"], "{:.1%}")
        left.xaxis.set_major_formatter("{x:.0%}")
        _bars(right, throughput, ratios, ["whole"] * len(ratios), "{:.2f}")
        right.axvline(1, color="#6b7280", linestyle="--")
        right.set_xlim(0, 1.08)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1])
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=100, metadata={SHOWN: json.dumps(data)})


def _bars(axes: Axes, title: str, data: Bars, colours: list[str], numbers: str) -> None:
    bars = axes.barh(list(data), list(data.values()), color=[COLOURS[name] for name in colours], height=0.62)
    axes.bar_label(
        bars, [numbers.format(value) for value in data.values()], label_type="center", color="white", fontweight="bold"
    )
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=12)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def page_digest() -> str:
    """What the screenshot depends on, as one number: markup and style of the page, and the images on it."""
    scores = np.array([0.75, 0.25], np.float32)
    result = Classification(
        "a.jpg", label="Sea", score=0.75, classes=("Sea", "Street"), scores=scores, encoder_scores={"one": scores[::-1]}
    )
    parts = [
        _html.STYLE,
        _html.head("localhost:8001", ["one"], "version"),
        _html.cards([result], ["a.jpg"]),
        inspect.getsource(_web.Page.build),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for sample in SAMPLES:
        digest.update(sample.read_bytes())
    return digest.hexdigest()


def shown(path: Path) -> Any:
    """What a picture says of itself."""
    with Image.open(path) as image:
        return json.loads(image.info[SHOWN])


def take_screenshot(path: Path, url: str, chromium: str) -> None:
    """The page with the samples classified.

    Args:
        path: of the PNG.
        url: of the server.
        chromium: path of the browser.
    """
    command: list[str | Path] = [
        Path(sys.executable).with_name("clipchoir"),
        "web",
        "--url",
        url,
        "--port",
        "0",
        "--no-open",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (address,) = re.findall(r"http://\S+(?=;)", process.stdout.readline())
        with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(address)
            page.locator("input[type=file]").set_input_files(SAMPLES)
            expect(page.locator(".choir-card")).to_have_count(len(SAMPLES), timeout=60_000)
            page.wait_for_timeout(1000)  # transitions of the page
            taken = Path(folder) / "page.png"
            page.screenshot(path=taken)
            browser.close()
            metadata = PngInfo()
            metadata.add_text(SHOWN, json.dumps(page_digest()))
            with Image.open(taken) as image, replacing(path) as file:
                image.convert("RGB").quantize(256).save(file, "PNG", pnginfo=metadata, optimize=True)
        process.send_signal(signal.SIGINT)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("the screenshot needs chromium (on Debian: apt-get install chromium)")
    draw_chart(CHART, chart_data())
    with serving(ROOT / "build" / "demo", Address.choose()) as triton:
        take_screenshot(SCREENSHOT, triton.address.grpc, chromium)


if __name__ == "__main__":
    main()
