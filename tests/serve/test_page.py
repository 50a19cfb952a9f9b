"""The page in a real browser: Chromium of the system, which asks nothing but this server."""

import shutil
from pathlib import Path

import pytest

from serve.conftest import running
from serve.toys import Toy, table
from stepwell.serve.engine import Engine

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_picture_shows_every_depths_answer_and_a_slider_the_promise(tmp_path):
    toy = Toy()
    about = {"small": {"macs": 1_500_000, "accuracy": 0.81}, "large": {"macs": 2_000_000_000}}
    asked, errors = [], []
    engine = Engine(toy.served(about=about), 500, table=table())
    with running(engine) as url, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1000, "height": 1000})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#rows tbody tr")
        assert "Answers within 500 ms, from depths small, large." in page.inner_text("#about")
        assert "1.5 M" in page.inner_text("#rows")
        assert "81.0 %" in page.inner_text("#rows")
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"-1"})
        page.wait_for_selector("tr.chosen")
        rows = [row.all_inner_texts()[0].split() for row in page.locator("#rows tbody tr").all()]
        assert [row[:3] for row in rows] == [["small", "minus", "90.0"], ["large", "minus", "90.0"]]
        assert "depth large answered in" in page.inner_text("#choice")
        # a short promise is kept by the shallow depth
        page.locator("#promise").fill("10")
        page.locator("#promise").dispatch_event("change")
        page.locator("#choice", has_text="depth small answered in").wait_for()
        assert page.locator("tr.chosen td").first.inner_text() == "small"
        page.wait_for_selector("#chart rect[data-row=large]", state="attached")
        assert "promise 500 ms" in page.text_content("#chart")
        page.set_input_files("#file", {"name": "y", "mimeType": "image/png", "buffer": b"no"})
        page.locator("#said", has_text="is no number").wait_for()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert all(one.startswith((url, "blob:")) for one in asked)
    assert [e for e in errors if "400" not in e] == []
    assert (tmp_path / "page.png").stat().st_size > 10_000
    page_file = Path(__file__).parents[2] / "src/stepwell/serve/page.html"
    assert page_file.stat().st_size < 20_000
    assert "http" not in page_file.read_text().replace("http://www.w3.org/2000/svg", "")
