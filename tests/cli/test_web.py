"""`clipchoir web`: the real command and a real browser, against a real server."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from clipchoir import Classification, Client, LabelSet
from clipchoir.cli import _web
from clipchoir.cli._html import cards as cards_html
from clipchoir_server.triton import Triton
from tests.conftest import BIN, HEEDING_CTRL_C, ROOT, run

SEA = ROOT / "demo" / "samples" / "Sea" / "sea_00.jpg"
STREET = ROOT / "demo" / "samples" / "Street" / "street_01.jpg"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WITHIN = 60_000  # ms


@pytest.fixture(scope="module")
def url(server: Triton) -> Iterator[str]:
    """The page's address. Afterwards Ctrl-C ends the command in an orderly way."""
    command: list[str | Path] = [BIN / "clipchoir", "web", "--url", server.address.grpc, "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*HEEDING_CTRL_C, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+); Ctrl-C stops it\n", line)
            assert match, line
            yield match[1]
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stdout, stderr) == (130, "", "stopped\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("CLIPCHOIR_REQUIRE_BROWSER"), "there is no chromium"
        pytest.skip("there is no chromium (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium, args=QUIET) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, which asks nothing of any other host."""
    with browser.new_page() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(WITHIN)
        page.goto(url)
        expect(page.get_by_text("Drop images on the left")).to_be_visible(timeout=WITHIN)
        yield page
        assert asked
        assert [each for each in asked if not each.startswith((url, "data:", "blob:"))] == []


def upload(page: Page, *paths: Path) -> None:
    page.locator("input[type=file]").set_input_files(paths)


def cards(page: Page, count: int) -> list[Locator]:
    """The images' results, as soon as there are so many."""
    found = page.locator(".choir-card")
    expect(found).to_have_count(count, timeout=WITHIN)
    return found.all()


def check(card: Locator, expected: Classification) -> None:
    """The card shows the winner, and the scores of the ensemble and of each encoder by class."""
    expect(card.locator(".choir-winner")).to_have_text(f"{expected.label} {expected.score:.1%}", timeout=WITHIN)
    wanted = {"ensemble": expected.scores, **expected.encoder_scores}
    assert card.locator("thead th").all_inner_texts() == ["class", *wanted]
    rows = card.locator("tbody tr").all()
    assert {row.locator("th").inner_text() for row in rows} == set(expected.classes)
    for row in rows:
        index = expected.classes.index(row.locator("th").inner_text())
        for cell, scores in zip(row.locator("td").all(), wanted.values(), strict=True):
            assert float(cell.get_attribute("title") or "nan") == pytest.approx(scores[index], abs=1e-5)
            assert float(cell.inner_text().rstrip("%")) == pytest.approx(100 * scores[index], abs=0.051)
            share = cell.evaluate("cell => parseFloat(getComputedStyle(cell).backgroundSize)")
            assert share == pytest.approx(100 * scores[index], abs=0.01)


def test_images_are_classified_as_the_library_does(page: Page, server: Triton, tmp_path: Path) -> None:
    broken = tmp_path / "broken <i>.jpg"
    broken.write_text("no image")
    with Client(server.address.grpc) as client:
        sea, failed, street = client.classify([SEA, broken, STREET])
        (moods,) = client.classify([STREET], label_set="moods")
    upload(page, SEA, broken, STREET)
    shown = cards(page, 3)
    check(shown[0], sea)
    check(shown[2], street)
    assert shown[0].locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    expect(shown[1].get_by_role("alert")).to_have_text(failed.error)
    expect(shown[1].locator("h3")).to_contain_text("broken")
    assert failed.error
    assert shown[1].locator("table").count() == 0

    page.get_by_label("Name").click()
    page.get_by_role("option", name="moods").click()
    expect(page.locator(".choir-winner").nth(1)).to_contain_text(moods.label, timeout=WITHIN)
    check(cards(page, 3)[2], moods)


def test_own_classes_templates_and_weights(page: Page, server: Triton) -> None:
    classes = ["water", "<b>x</b> ${1+1} {{value}}", "city"]
    templates = ["a photo of {}.", "{}"]
    with Client(server.address.grpc) as client:
        (equal,) = client.classify([STREET], label_set=LabelSet(classes, templates))
        (weighted,) = client.classify([STREET], label_set=LabelSet(classes, templates), weights=[0.5, 0])
    assert abs(equal.scores - weighted.scores).max() > 0.01
    upload(page, STREET)
    cards(page, 1)
    page.get_by_label("your own classes").check()
    own = page.get_by_label("Classes, one a line")
    expect(own).to_have_value("Buildings\nForests\nGlacier\nMountains\nSea\nStreet", timeout=WITHIN)
    own.fill("\n".join(classes) + "\n\n")
    page.get_by_label("Templates, one a line").fill("\n".join(templates))
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".choir-winner")).to_contain_text(equal.label, timeout=WITHIN)
    check(cards(page, 1)[0], equal)

    page.get_by_label("Weigh the encoders").check()
    page.get_by_label("number input for evaclip").fill("0")
    page.get_by_role("button", name="Classify").click()
    check(cards(page, 1)[0], weighted)


def test_what_the_server_refuses_is_said_on_the_page(page: Page) -> None:
    upload(page, SEA)
    cards(page, 1)
    problem = page.locator(".choir-problem")
    page.get_by_label("Name").fill("pets")
    page.get_by_label("Name").press("Enter")
    page.get_by_role("button", name="Classify").click()
    expect(problem).to_contain_text('label set "pets" is not in this repository', timeout=WITHIN)

    page.get_by_label("your own classes").check()
    page.get_by_label("Classes, one a line").fill("Sea\nStreet")
    page.get_by_label("Templates, one a line").fill("a photo")
    page.get_by_role("button", name="Classify").click()
    expect(problem).to_contain_text('template "a photo" has no "{}"', timeout=WITHIN)
    assert "Traceback" not in page.content()


def test_a_server_that_has_gone_away_is_said_on_the_page() -> None:
    with Client("localhost:1", patience=0) as client:
        shown = _web.Page(client, None).classify([str(SEA)], "of the server", None, "", "", False)
    assert re.fullmatch(r'<div class="choir-problem" role="alert">no server answers at localhost:1.*</div>', shown)


def test_of_many_classes_the_best_and_the_encoders_winners_are_shown() -> None:
    ensemble = np.linspace(0.1, 0, 21, dtype=np.float32)
    classes = tuple(f"class {index}" for index in range(21))
    scores = {"metaclip": ensemble, "evaclip": ensemble[::-1]}
    result = Classification("a", label="class 0", score=0.1, classes=classes, scores=ensemble, encoder_scores=scores)
    shown = cards_html([result], ["a"])
    assert re.findall(r">(class \d+)</th>", shown) == [*classes[:10], "class 20"]
    assert "evaclip would say class 20" in shown
    assert "and 10 more classes" in shown


def test_the_page_is_there_without_a_browser(url: str) -> None:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
        assert "Drop images on the left" in answer.read().decode()


def test_a_wrong_url_is_reported_at_once() -> None:
    done = run("clipchoir", "web", "--url", "localhost:1", "--port", "0", "--no-open")
    assert done.returncode == 4
    assert re.fullmatch(r"error: no server answers at localhost:1.*\n", done.stderr)
    assert done.stdout == ""


def test_a_port_in_use_is_reported(server: Triton) -> None:
    port = server.address.grpc.rpartition(":")[2]
    done = run("clipchoir", "web", "--url", server.address.grpc, "--port", port, "--no-open")
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: cannot listen: .*'127.0.0.1', {port}.*; --host and --port name another\n", done.stderr
    )


def test_a_missing_extra_is_named(server: Triton) -> None:
    script = "import sys; sys.modules['gradio'] = None; from clipchoir.cli import main; main()"
    command = [sys.executable, "-c", script, "web", "--url", server.address.grpc, "--no-open"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: this needs gradio, .*: pip install 'clipchoir\[web\]'\n", done.stderr)
