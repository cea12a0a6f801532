"""The page in a real browser: a Chromium of the machine (chromium, chromium-browser, google-chrome on the PATH, or the
one of `playwright install chromium`). Without any, the tests are skipped and say so. Debian: apt-get install chromium.

`FLASHU_SCREENSHOTS=folder` keeps a picture of every state to look at.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.served import Served, png

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    sync_api.expect.set_options(timeout=WAIT)  # its own 5 seconds are few on a busy machine
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH, and playwright has installed none")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert not problems


def opened(page: Any, server: Served) -> None:
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("FLASHU_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def fill(page: Any, **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", value)


def wait_drawn(page: Any, n: int = 0) -> str:
    caption = page.locator(f"#panel-{n} figcaption")
    sync_api.expect(caption).to_contain_text("forwards", timeout=WAIT)
    return caption.inner_text()


def test_draw_then_ask(page: Any, server: Served) -> None:
    opened(page, server)
    keep(page, "start")
    fill(page, prompt="a red circle above a blue square", num_inference_steps="12", seed="3")
    page.click("#go")
    page.wait_for_selector("#panel-0 img:not([hidden])")  # a preview comes before the picture
    assert "step" in page.get_attribute("#panel-0 img", "alt")
    keep(page, "preview")
    text = wait_drawn(page)
    assert "12 forwards" in text
    assert "seed 3" in text
    assert page.locator("#history button").count() == 1
    page.fill("#question", "how many circles are there?")
    page.press("#question", "Enter")
    sync_api.expect(page.locator("#answers li span").first).to_have_text(re.compile(r"so \w+"), timeout=WAIT)
    keep(page, "answered")


def test_compare_two_presets(page: Any, server: Served) -> None:
    opened(page, server)
    page.check("#compare")
    page.select_option("#other", "paper")
    fill(page, num_inference_steps="10", seed="1")
    page.press("#prompt", "Control+Enter")
    assert "exact" in wait_drawn(page, 0)
    assert "paper" in wait_drawn(page, 1)
    sync_api.expect(page.locator("#verdict")).to_contain_text("× as quick as")
    keep(page, "compared")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    keep(page, "phone")


def test_cancel(page: Any, server: Served) -> None:
    opened(page, server)
    before = server.metric('flashu_samples_total{end="cancelled"')
    fill(page, num_inference_steps="200")
    page.click("#go")
    sync_api.expect(page.locator("#panel-0 figcaption")).to_contain_text("step", timeout=WAIT)
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#panel-0 figcaption")).to_have_text("cancelled")
    sync_api.expect(page.locator("#go")).to_be_enabled()
    for _ in range(600):
        if server.metric('flashu_samples_total{end="cancelled"') > before:
            break
        page.wait_for_timeout(100)
    else:
        raise AssertionError("the server still draws")
    assert server.metric("flashu_running_samples") == 0


def test_an_error_is_shown_at_its_field(page: Any, server: Served) -> None:
    opened(page, server)
    fill(page, size="63x64")
    page.click("#go")
    sync_api.expect(page.locator("#error")).to_contain_text("multiples of 16 pixels")
    assert page.get_attribute("#size", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "size"
    keep(page, "error")
    page.click("#error-close")
    sync_api.expect(page.locator("#error")).to_be_hidden()


def test_dark_and_light(page: Any, server: Served) -> None:
    opened(page, server)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    keep(page, "dark")
    page.reload()
    assert page.evaluate(ground) == dark  # it is remembered
    page.emulate_media(color_scheme="dark")
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.evaluate(ground) == dark  # and without a choice it is the system's


def test_by_keyboard_alone(page: Any, server: Served) -> None:
    """Every control can be reached by Tab, in an order, and shows that it is."""
    opened(page, server)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    for name in ("prompt", "preset", "compare", "num_inference_steps", "seed", "go", "question", "ask-go"):
        assert name in reached
    assert reached.index("prompt") < reached.index("go") < reached.index("question")


def test_edit_a_picture_of_ones_own(page: Any, editing: Served) -> None:
    opened(page, editing)
    page.set_input_files("#open", {"name": "mine.png", "mimeType": "image/png", "buffer": png((90, 90, 90), (4, 4))})
    sync_api.expect(page.locator("#panel-0 figcaption")).to_have_text("mine.png")
    page.fill("#change", "w1 w2")
    page.press("#change", "Enter")
    assert "16 forwards" in wait_drawn(page)
    assert page.locator("#history button").count() == 2
    keep(page, "edited")


def test_a_model_that_cannot_edit_offers_none(page: Any, server: Served) -> None:
    opened(page, server)
    assert page.is_hidden("#edit")


def test_the_api_page(page: Any, server: Served) -> None:
    page.goto(f"{server.url}/docs")
    sync_api.expect(page.locator("section")).to_have_count(10)
    sync_api.expect(page.locator("body")).to_contain_text("num_inference_steps")
    keep(page, "docs")
