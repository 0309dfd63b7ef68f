"""Fixtures of the tests of `mclip-evaluate` on benchmarks and of `mclip-search`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_fairseq.cli import evaluate
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.grey_benchmarks import GreyModel, write_benchmarks
from tests.search_cli import Run


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in a directory of `transformers`."""
    from tests.tiny_models import tiny_clip_directory

    return tiny_clip_directory(tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture
def colour_model(monkeypatch: pytest.MonkeyPatch) -> ColourModel:
    """The model that `mclip-search` loads."""
    model = ColourModel()
    monkeypatch.setattr("mclip_fairseq.cli.search.load_model", lambda *arguments: model)
    return model


@pytest.fixture
def mclip_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command beside a folder of images; returns what it printed (on stderr if it should fail)."""
    from mclip_fairseq.cli import search as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # a busy disk would add seconds
    draw_colours(tmp_path / "photos")

    def run(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == status, capsys.readouterr().err
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Any, Any]]:
    """Port, index and model of a running page."""
    from tests.search_page import BAD_NAME, SECRET, SlowModel, make_index, running

    folder = tmp_path_factory.mktemp("server")
    draw_colours(folder / "photos")
    with Image.open(folder / "photos" / "red.png") as picture:
        picture.save(folder / "photos" / BAD_NAME)
    large = Image.new("RGB", (3000, 2000), COLOURS["blue"])
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    large.save(folder / "photos" / "large.jpg", exif=exif)
    (folder / "secret.txt").write_text(SECRET)
    model = SlowModel()
    index = make_index(folder / "index", folder / "photos", model)
    (folder / "photos" / "white.png").unlink()
    with running(index, model) as port:
        yield port, index, model


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; the test is skipped if it is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def grey_models(monkeypatch: pytest.MonkeyPatch) -> dict[str, GreyModel]:
    """What `--model first second` loads; the second takes German d for a."""
    loaded = {name: GreyModel(name) for name in ("first", "second")}
    monkeypatch.setattr(evaluate, "load_model", lambda options, number: loaded[options.model[number]])
    return loaded


@pytest.fixture
def benchmark_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one benchmark of each kind."""
    monkeypatch.chdir(tmp_path)
    write_benchmarks(tmp_path)
    return tmp_path
