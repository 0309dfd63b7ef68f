"""The page's start screen, large view, similar images, captions and folding, in a real headless browser.

`MCLIP_SCREENSHOTS=FOLDER MCLIP_SCREENSHOT_RUN=runs/quickstart` also takes the screenshots of the docs: the start
screen and a search, at desktop and phone width, light and dark.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_fairseq.cli import search as cli
from mclip_fairseq.cli.search_engines import open_index
from mclip_fairseq.search.presenting import read_extras
from tests.colours import ColourModel, draw_colours
from tests.search_page import make_index, running

IDS = "[...document.querySelectorAll('#results .id')].map((id) => id.textContent)"
COPIES = 30
DESKTOP, PHONE = {"width": 1040, "height": 720}, {"width": 360, "height": 640}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Eight colours and thirty copies of red; two have captions."""
    folder = tmp_path_factory.mktemp("views")
    draw_colours(folder / "photos")
    for number in range(COPIES):
        shutil.copy(folder / "photos" / "red.png", folder / "photos" / f"red{number:02}.png")
    model = ColourModel()
    index = make_index(folder / "index", folder / "photos", model)
    (folder / "examples.tsv").write_text("de\tgrün\nar\tأصفر\n", encoding="utf-8")
    (folder / "captions.tsv").write_text("green.png\ta green picture\nblue.png\tصورة زرقاء\n", encoding="utf-8")
    with running(index, model, read_extras(folder / "examples.tsv", folder / "captions.tsv")) as port:
        yield port


@pytest.fixture(params=[(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def page(browser: Any, port: int, request: pytest.FixtureRequest) -> Iterator[Any]:
    size, scheme = request.param
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(120_000)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"http://127.0.0.1:{port}/")
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    context.close()
    assert complaints == []


def first_is(page: Any, name: str) -> None:
    """Wait until the first image is this one."""
    page.wait_for_function(f"name => ({IDS})[0] === name", arg=name)


def test_the_start_screen_offers_queries_and_pictures(page: Any) -> None:
    page.locator("#examples button").nth(1).wait_for()
    assert page.locator("#examples small").all_inner_texts() == ["German", "Arabic"]
    assert page.locator("#examples span").nth(1).evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert 8 <= page.locator("#samples li").count() <= 12
    page.locator("#examples button").first.click()
    first_is(page, "green.png")
    assert page.locator("#query").input_value() == "grün"
    assert not page.locator("#start").is_visible()
    page.locator("#query").fill("")
    page.locator("#samples button").first.click()
    page.locator("#asked").wait_for()
    page.wait_for_function("() => document.querySelectorAll('#results li').length > 5")
    page.locator("#forget").click()
    page.locator("#start").wait_for()


def test_the_large_view_goes_through_the_images(page: Any) -> None:
    page.locator("#query").fill("green")
    first_is(page, "green.png")
    assert page.locator("#results .words").first.inner_text() == "a green picture"
    ids = page.evaluate(IDS)
    page.locator("#results a").first.click()
    assert page.locator("#large-name").inner_text() == "a green picture · green.png"
    assert page.locator("#previous").is_disabled()
    page.locator("#following").click()
    assert page.locator("#large-name").inner_text().endswith(ids[1])
    page.wait_for_function("() => document.querySelector('#large-image').naturalWidth > 0")
    shown = page.locator("#large-image").evaluate("e => getComputedStyle(e).objectFit")
    assert shown == "scale-down", "neither cropped nor larger than it is"
    page.locator("#previous").click()
    page.locator("#large-similar").click()
    assert not page.locator("#large").is_visible()
    assert page.locator("#query").input_value() == ""
    page.wait_for_function(f"() => ({IDS}).length > 5 && !({IDS}).includes('green.png')")


def test_more_images_and_equal_images_once(page: Any) -> None:
    page.locator("#query").fill("red")
    page.wait_for_function("() => document.querySelectorAll('#results li').length === 24")
    page.locator("#more").click()
    page.wait_for_function("() => document.querySelectorAll('#results li').length === 38")
    assert not page.locator("#more").is_visible()
    page.locator("#unique").check()
    page.wait_for_function("() => document.querySelectorAll('#results li').length === 8")
    assert page.locator("#results .copies").first.inner_text() == f"+ {COPIES}"


def test_similar_images_are_refined_by_words(page: Any) -> None:
    page.locator("#query").fill("blue")
    first_is(page, "blue.png")
    page.locator("#results li").first.hover()
    page.locator("#results .similar").first.click()
    page.locator("#asked").wait_for()
    page.locator("#query").fill("red")
    first_is(page, "purple.png")


def test_no_tile_is_white_in_the_dark(page: Any) -> None:
    page.emulate_media(color_scheme="dark")
    page.locator("#query").fill("black")
    first_is(page, "black.png")
    colours = page.evaluate(
        "[...document.querySelectorAll('.shown, #results a, #examples button, #samples button')]"
        ".map((e) => getComputedStyle(e).backgroundColor)"
    )
    light = [colour for colour in colours if colour.startswith("rgb(") and min(map(int, colour[4:-1].split(","))) > 100]
    assert colours
    assert light == []


@pytest.mark.skipif("MCLIP_SCREENSHOTS" not in os.environ, reason="MCLIP_SCREENSHOTS names no folder to draw into")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_the_screenshots_of_the_docs(browser: Any, width: str, size: dict[str, int], scheme: str) -> None:
    run = Path(os.environ["MCLIP_SCREENSHOT_RUN"])
    model = ("--model", run / "search" / "checkpoint_last.pt", "--teacher", run / "search" / "teacher")
    places = ("--text-encoder", run / "tokenizer", "--images-root", run / "corpus" / "images")
    options = cli.build_parser().parse_args([str(word) for word in ("serve", run / "index", *model, *places)])
    index = open_index(options)
    extras = read_extras(run / "queries.tsv", run / "captions.tsv")
    with running(index, cli.load_model_of(index, options), extras) as port:
        context = browser.new_context(viewport=size, color_scheme=scheme)
        opened = context.new_page()
        opened.goto(f"http://127.0.0.1:{port}/")
        loaded = "() => [...document.images].filter((i) => i.naturalWidth > 0).length >= 6"
        opened.wait_for_function(loaded)
        save(opened, f"search-start-{width}-{scheme}")
        opened.locator("#query").fill(os.environ.get("MCLIP_SCREENSHOT_QUERY", "قلب أحمر"))
        opened.wait_for_function("() => document.querySelectorAll('#results li').length > 0")
        opened.wait_for_function(loaded)
        save(opened, f"search-{width}-{scheme}")
        context.close()


def save(page: Any, name: str) -> None:
    """Save what a page shows as a small PNG file."""
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as drawn:
        small = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(Path(os.environ["MCLIP_SCREENSHOTS"]) / f"{name}.png", optimize=True)
