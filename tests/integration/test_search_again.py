"""The same `mclip-search` command again ends well, because its work is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.colours import ColourModel
from tests.search_cli import BUILD, Run


def test_a_build_again_has_nothing_to_do(mclip_search: Run, colour_model: ColourModel) -> None:
    mclip_search(*BUILD)
    before = {path.name: path.read_bytes() for path in Path("index").iterdir()}
    assert mclip_search(*BUILD) == "index: nothing to do, holds an index of these 8 images already\n"
    assert {path.name: path.read_bytes() for path in Path("index").iterdir()} == before
    colour_model.fingerprint = "1" * 64
    assert "was made with the model" in mclip_search(*BUILD, status=2)


def test_a_build_of_other_images_is_refused(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    shutil.copy("photos/red.png", "photos/new.png")
    assert "already holds an index, of other images or settings or changed since" in mclip_search(*BUILD, status=2)
    Path("photos/new.png").unlink()
    mclip_search("remove", "index", "red.png")
    assert "already holds an index" in mclip_search(*BUILD, status=2)


def test_a_removal_again_has_nothing_to_do(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    names = [f"{name}.png" for name in ("red", "orange", "yellow", "black", "white", "blue")]
    for some in (names[:1], names):  # the second removal drops the rows from the files
        mclip_search("remove", "index", *some)
        assert mclip_search("remove", "index", *some) == (
            f"index: nothing to remove, all {len(some)} ids were removed before\n"
        )
    assert json.loads(Path("index/index.json").read_text())["rows"] == 2
    assert "'pink.png'; nothing was removed" in mclip_search("remove", "index", "red.png", "pink.png", status=2)
    mclip_search("add", "index", "photos", "--workers", 0)
    assert mclip_search("remove", "index", "red.png") == "index: 1 images removed, 7 left\n"
