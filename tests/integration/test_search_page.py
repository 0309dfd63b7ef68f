"""The page in a real headless browser: typing, dropping an image, keyboard only, a phone, dark mode."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_page import make_index, running

BAD_NAME = "<img src=x onerror=alert(1)>.png"
IDS = "[...document.querySelectorAll('#results .id')].map((id) => id.textContent)"


class Failing(ColourModel):
    """Fails for texts that begin with `fail`."""

    def encode_text(self, texts: Any, batch_size: int = 1, normalize: bool = True) -> Any:
        if "fail" in texts[0]:
            raise RuntimeError("as the text asks")
        return super().encode_text(texts)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("page")
    draw_colours(folder / "photos")
    shutil.copy(folder / "photos" / "black.png", folder / "photos" / BAD_NAME)
    model = Failing()
    index = make_index(folder / "index", folder / "photos", model)
    (folder / "photos" / "white.png").unlink()
    with running(index, model) as port:
        yield port


@pytest.fixture
def page(browser: Any, port: int, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, freshly opened; whatever it loads comes from its own server, and it never complains."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    context.set_default_timeout(120_000)
    opened = context.new_page()
    complaints: list[str] = []
    address = f"http://127.0.0.1:{port}/"
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    opened.on("console", lambda note: complaints.append(note.text) if "Security Policy" in note.text else None)
    opened.on(
        "request",
        lambda sent: None if sent.url.startswith((address, "blob:", "data:")) else complaints.append(sent.url),
    )
    opened.goto(address)
    yield opened
    context.close()
    assert complaints == []


def first_is(page: Any, name: str) -> None:
    """Wait until the first image is this one."""
    page.wait_for_function(f"name => ({IDS})[0] === name", arg=name)


def typed(page: Any, text: str) -> None:
    page.locator("#query").press_sequentially(text, delay=15)


@pytest.mark.parametrize(("text", "name"), [("blue", "blue.png"), ("grün", "green.png"), ("紫", "purple.png")])
def test_type_and_the_expected_image_comes_first(page: Any, text: str, name: str) -> None:
    typed(page, text)
    first_is(page, name)
    first = page.locator("#results li").first
    assert float(first.locator(".score").inner_text()) > 0.9
    page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 0")
    assert page.locator("#results li").count() == 9
    assert "9 images" in page.locator("#status").inner_text()
    with page.context.expect_page() as opened:
        first.locator("a").click(modifiers=["ControlOrMeta"])
    opened.value.wait_for_load_state()
    assert "/image/" in opened.value.url


def test_results_change_while_typing(page: Any) -> None:
    typed(page, "red")
    first_is(page, "red.png")
    typed(page, " blue")
    first_is(page, "purple.png")
    page.locator("#query").fill("")
    page.wait_for_function("() => document.querySelectorAll('#results li').length === 0")
    assert page.locator("#status").inner_text() == ""


def test_a_right_to_left_query_is_shown_right_to_left(page: Any) -> None:
    direction = "getComputedStyle(document.querySelector('#query')).direction"
    typed(page, "أصفر")
    first_is(page, "yellow.png")
    assert page.evaluate(direction) == "rtl"
    page.locator("#query").fill("黄色")
    assert page.evaluate(direction) == "ltr"
    first_is(page, "yellow.png")


DROP = """([data, type]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'dropped', { type }));
  for (const name of ['dragenter', 'dragover', 'drop'])
    document.body.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def drop(page: Any, content: bytes, kind: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), kind])


def picture(name: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), COLOURS[name]).save(stream, "PNG")
    return stream.getvalue()


def test_a_dropped_image_is_searched_with(page: Any) -> None:
    typed(page, "red")
    first_is(page, "red.png")
    drop(page, picture("green"))
    first_is(page, "green.png")
    assert page.locator("#asked").is_visible()
    assert not page.locator("#drop").is_visible()
    assert page.locator("#query").input_value() == ""
    page.locator("#forget").click()
    assert page.locator("#results li").count() == 0
    page.locator("#file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": picture("red")})
    first_is(page, "red.png")
    typed(page, "blue")
    first_is(page, "purple.png")
    assert page.locator("#asked").is_visible()
    page.locator("#forget").click()
    first_is(page, "blue.png")


def test_an_unusable_file_is_reported(page: Any) -> None:
    drop(page, b"no picture", "text/plain")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('known format')")
    assert page.locator("#status").get_attribute("class") == "wrong"
    page.locator("#query").fill("fail")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'the search failed'")
    page.locator("#query").fill("red")
    first_is(page, "red.png")
    assert page.locator("#status").get_attribute("class") != "wrong"


def test_keys_alone_are_enough(page: Any) -> None:
    focused = "document.activeElement.closest('li')?.querySelector('.id').textContent"
    page.keyboard.type("orange")  # the field has the focus already
    first_is(page, "orange.png")
    ids = page.evaluate(IDS)
    wide = page.evaluate("columns([...document.querySelectorAll('#results a')])")
    assert 2 <= wide < len(ids)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[0]
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowLeft", 0),
        ("ArrowDown", wide),
        ("End", 8),
        ("ArrowRight", 8),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == ids[place], key
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#large-name").inner_text() == ids[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    assert page.evaluate(focused) == ids[0]
    page.keyboard.press("s")
    page.wait_for_function(f"id => !({IDS}).includes(id)", arg=ids[0])
    page.locator("#forget").click()
    page.keyboard.type("orange")
    first_is(page, "orange.png")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Escape")
    assert page.locator("#query").input_value() == ""
    assert page.locator("#results li").count() == 0


def test_an_image_is_chosen_with_keys(page: Any) -> None:
    page.wait_for_function("document.activeElement.id === 'query'")  # the page focuses it as it loads
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    # The chooser itself opens outside the page.
    page.evaluate("file.addEventListener('click', (event) => { event.preventDefault(); document.title = 'asked'; })")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.title === 'asked'")
    page.locator("#file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": picture("yellow")})
    first_is(page, "yellow.png")


def test_a_phone_shows_it_without_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    typed(page, "blue")
    first_is(page, "blue.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [item.bounding_box() for item in page.locator("#results li").all()]
    assert len({round(box["x"]) for box in boxes}) == 2
    for name in ("#query", "#choose"):
        assert page.locator(name).bounding_box()["height"] >= 44


def test_dark_is_dark(page: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    page.emulate_media(color_scheme="light")
    assert min(page.evaluate(paper)) > 200
    page.emulate_media(color_scheme="dark")
    assert max(page.evaluate(paper)) < 60


def test_script_in_a_name_is_text_and_a_deleted_image_says_so(page: Any) -> None:
    typed(page, "black")
    page.wait_for_function(f"() => ({IDS}).includes('{BAD_NAME}')")
    assert page.locator("#results script, #results [onerror]").count() == 0
    page.get_by_text("image not available").scroll_into_view_if_needed()
    page.goto(page.url.split("#")[0] + "#q=%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    page.reload()
    assert page.locator("#query").input_value() == "<script>alert(1)</script>"
    page.get_by_text("the query is markup").wait_for()
