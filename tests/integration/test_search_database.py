"""`mclip-search --engine milvus`: the same commands on a collection of a vector database, here of milvus-lite."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_cli import Run

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

DATABASE = ["--engine", "milvus", "--uri", "images.db"]
BUILD = ["build", "photos", "--model", "colours", "--output", "colours", "--workers", "0", *DATABASE]
PLACE = "images.db, collection colours"


def answers(run: Run, *arguments: object) -> list[list[tuple[str, float]]]:
    """(id, score) of the hits of each query."""
    found = json.loads(run("query", "colours", *arguments, *DATABASE, "--json"))["answers"]
    return [[(hit["id"], hit["score"]) for hit in answer["results"]] for answer in found]


def ids(run: Run, *arguments: object) -> list[str]:
    """The ids of the hits of one query."""
    return [name for name, _ in answers(run, *arguments)[0]]


def test_answers_are_those_of_an_exact_index(mclip_search: Run) -> None:
    assert mclip_search(*BUILD) == f"{PLACE}: 8 images of 5 dimensions, exact\n"
    assert mclip_search(*BUILD) == f"{PLACE}: nothing to do, holds these 8 images already\n"
    mclip_search("build", "photos", "--model", "colours", "--output", "index", "--workers", "0")
    Path("queries.txt").write_text("red\nblau\n緑\n")
    expected = json.loads(mclip_search("query", "index", "--queries", "queries.txt", "--json"))["answers"]
    for found, right in zip(answers(mclip_search, "--queries", "queries.txt"), expected, strict=True):
        assert [name for name, _ in found] == [hit["id"] for hit in right["results"]]
        np.testing.assert_allclose([s for _, s in found], [hit["score"] for hit in right["results"]], atol=2e-6)
    hit = json.loads(mclip_search("query", "colours", "red", *DATABASE, "--json"))["answers"][0]["results"][0]
    assert hit["file"] == str(Path("photos/red.png").absolute())
    assert ids(mclip_search, "--image", "photos/green.png", "-k", 1) == ["green.png"]
    compared = mclip_search("query", "colours", *DATABASE, "--languages", "en=blue", "de=blau", "--target", "blue.png")
    assert "rank of blue.png" in compared
    assert "has no image 'x'" in mclip_search(
        "query", "colours", *DATABASE, "--languages", "en=blue", "--target", "x", status=2
    )


def test_copies_count_once(mclip_search: Run) -> None:
    shutil.copy("photos/red.png", "photos/copy.png")
    mclip_search(*BUILD)
    assert sorted(ids(mclip_search, "red", "-k", 2)) == ["copy.png", "red.png"]
    assert len({*ids(mclip_search, "red", "-k", 2, "--unique")} & {"copy.png", "red.png"}) == 1


def test_images_are_added_changed_and_removed(mclip_search: Run, colour_model: ColourModel) -> None:
    Path("photos/blue.png").rename("blue.png")
    mclip_search(*BUILD)
    Path("blue.png").rename("photos/blue.png")
    add = ["add", "colours", "photos", "--workers", 0, *DATABASE]
    assert mclip_search(*add) == f"{PLACE}: 1 images added, 7 already in the collection\n"
    assert mclip_search(*add) == f"{PLACE}: nothing to add, all 8 images are already in the collection\n"
    assert ids(mclip_search, "blue")[0] == "blue.png"
    assert mclip_search("remove", "colours", "red.png", "red.png", "no.png", *DATABASE) == (
        f"{PLACE}: 1 images removed, 7 left; 1 of the 2 ids are not in the collection, such as 'no.png'\n"
    )
    assert "red.png" not in ids(mclip_search, "red")
    assert mclip_search("remove", "colours", "red.png", *DATABASE).startswith(
        f"{PLACE}: 0 images removed, 7 left; 1 of"
    )
    Image.new("RGB", (9, 9), COLOURS["yellow"]).save("photos/green.png")
    printed = mclip_search(*add)
    assert printed == (f"{PLACE}: 1 images added, 1 changed since and encoded again, 6 already in the collection\n")
    assert set(ids(mclip_search, "yellow", "-k", 2)) == {"green.png", "yellow.png"}
    assert mclip_search(*add, "--replace") == f"{PLACE}: 0 images added, 8 replaced\n"
    assert "already holds other images or settings, or was changed since" in mclip_search(*BUILD, status=2)


def test_an_id_never_silently_changes_its_image(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    draw_colours(Path("others"), ["red", "black"])
    Image.new("RGB", (9, 9), COLOURS["blue"]).save("others/red.png")
    Path("others/black.png").rename("others/dark.png")
    printed = mclip_search("add", "colours", "others", "--workers", 0, *DATABASE, status=2)
    assert "the id 'red.png' already names a different image, red.png" in printed
    mclip_search("add", "colours", "others", "--workers", 0, *DATABASE, "--replace")
    assert set(ids(mclip_search, "blue", "-k", 2)) == {"blue.png", "red.png"}
    hit = json.loads(mclip_search("query", "colours", "black", "-k", 9, *DATABASE, "--json"))["answers"][0]["results"]
    files = {each["id"]: each["file"] for each in hit}
    assert files["dark.png"] == str(Path("others/dark.png").absolute())  # a second root folder
    assert files["white.png"] == str(Path("photos/white.png").absolute())


def test_an_interrupted_build_continues(
    mclip_search: Run, colour_model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclip_fairseq.search import database, milvus

    monkeypatch.setattr(database, "CHUNK", 3)
    upsert, written = milvus.MilvusStore.upsert, list[int]()

    def dies_at_the_second(self: Any, records: Any, vectors: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        upsert(self, records, vectors)
        written.append(len(records))

    monkeypatch.setattr(milvus.MilvusStore, "upsert", dies_at_the_second)
    assert "run the same command again to continue" in mclip_search(*BUILD, status=130)
    assert "is not finished; run the mclip-search build that began it again" in mclip_search(
        "query", "colours", "red", *DATABASE, status=2
    )
    monkeypatch.setattr(milvus.MilvusStore, "upsert", upsert)
    draw_colours(Path("others"), ["red"])
    printed = mclip_search("build", "others", *BUILD[2:], status=2)  # other images are not mixed with these
    assert f"{PLACE}: holds 3 images that an interrupted build has written and others lacks; remove them" in printed
    encoded = list[int]()
    encode = colour_model.encode_image

    def counted(images: Any, **more: Any) -> Any:
        encoded.append(len(images))
        return encode(images, **more)

    monkeypatch.setattr(colour_model, "encode_image", counted)
    assert mclip_search(*BUILD) == f"{PLACE}: 8 images of 5 dimensions, exact\n"
    assert sum(encoded) == 5  # the three that were written are not encoded again
    assert len(ids(mclip_search, "red")) == 8


@pytest.mark.parametrize("call", ["upsert", "delete"])
def test_a_killed_change_is_not_taken_for_the_build(
    call: str, mclip_search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again ends well, and the build says that its images are not what the collection holds."""
    from mclip_fairseq.search import milvus

    mclip_search(*BUILD)
    draw_colours(Path("others"), ["black"])
    Path("others/black.png").rename("others/dark.png")
    adds = ["add", "colours", "others", "--model", "colours", "--workers", "0", *DATABASE]
    change = adds if call == "upsert" else ["remove", "colours", "red.png", *DATABASE]
    write = getattr(milvus.MilvusStore, call)

    def dies(self: Any, *arguments: Any) -> None:
        write(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(milvus.MilvusStore, call, dies)
        mclip_search(*change, status=130)
    assert "was changed since" in mclip_search(*BUILD, status=2)
    said = mclip_search(*change)
    assert ("all 1 images are already in the collection" if call == "upsert" else "0 images removed, 7 left") in said


def test_unreadable_images_share_one_budget_over_the_chunks(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mclip_fairseq.search import database

    monkeypatch.setattr(database, "CHUNK", 3)
    for name in ("blue", "yellow"):
        Path(f"photos/{name}.png").write_bytes(b"no image")
    printed = mclip_search(*BUILD, "--skip-budget", 1, status=2)
    assert "more than --skip-budget 1 inputs cannot be read (1 were skipped before)" in printed
    assert mclip_search(*BUILD, "--skip-budget", 2).endswith("exact; 2 unreadable images skipped\n")


def test_filters_read_folder_date_and_columns(mclip_search: Run) -> None:
    draw_colours(Path("photos/2024"), ["red", "blue"])
    rows = ["id\tpath\tdate\tcamera\tyear", "2024/red.png\t2024/red.png\t2024-05-01\tX100\t2024"]
    rows += ["2024/blue.png\t2024/blue.png\t2024-07-01\t\t2024", "a\"b\\c'd\tgreen.png\t2023-01-01\tX100\t2023"]
    Path("photos/list.tsv").write_text("\n".join(rows) + "\n")
    mclip_search("build", "photos/list.tsv", *BUILD[2:])
    everything = ["2024/blue.png", "2024/red.png", "a\"b\\c'd"]
    for where, expected in {
        'folder == "2024"': everything[:2],
        'folder like "20%"': everything[:2],
        'date >= "2024-06-01"': everything[:1],
        'camera == "X100"': everything[1:],
        "year < 2024": everything[2:],
        'camera == "X100" and year == 2024': everything[1:2],
    }.items():
        assert sorted(ids(mclip_search, "red", "--where", where)) == expected, where
    for wrong in ('date = "', 'author == "x" and', 'connect = "retry"'):  # words of other errors, too
        refused = mclip_search("query", "colours", "red", *DATABASE, "--where", wrong, status=2)
        assert refused.startswith(f"mclip-search: error: --where {wrong}: is refused by {PLACE}: ")
    # An id with quotes and backslashes is an id, not a part of a filter.
    assert mclip_search("remove", "colours", "a\"b\\c'd", *DATABASE) == f"{PLACE}: 1 images removed, 2 left\n"


def test_the_day_of_a_file_is_its_date(mclip_search: Run) -> None:
    os.utime("photos/red.png", (86400 * 365.25 * 10,) * 2)  # 1980
    mclip_search(*BUILD)
    assert ids(mclip_search, "red", "--where", 'date < "2000-01-01"') == ["red.png"]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_recall_of_an_approximate_kind_is_printed(mclip_search: Run, kind: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.new("RGB", (4, 4), tuple(rng.integers(0, 256, 3).tolist())).save(f"photos/{number}.png")
    printed = mclip_search(*BUILD, "--kind", kind)
    assert printed.startswith(f"{PLACE}: 48 images of 5 dimensions, {kind}\n{kind}: finds ")
    share = float(printed.split("finds ")[1].split(" %")[0])
    assert share >= 95
    assert "(48 images of the index as queries, " in printed


def test_another_model_or_width_is_refused(mclip_search: Run, colour_model: ColourModel) -> None:
    mclip_search(*BUILD)
    colour_model.dim = 6
    assert f"{PLACE}: holds vectors of 5 dimensions, not of 6" in mclip_search(
        "query", "colours", "red", *DATABASE, status=2
    )
    colour_model.fingerprint = "1" * 64
    for command in (
        ["query", "colours", "red", *DATABASE],
        ["add", "colours", "photos", *DATABASE, "--replace"],
        BUILD,
    ):
        assert "was made with the model 'colours' (fingerprint 000000000000)" in mclip_search(*command, status=2)


def test_features_go_into_a_collection(mclip_search: Run, colour_model: ColourModel) -> None:
    from mclip_fairseq.storage.features import write_features

    vectors = colour_model.encode_image([Path(f"photos/{name}.png") for name in ("red", "blue")]).numpy()
    write_features("features", ["a/red", "blue"], vectors, model={"name": "t"}, normalized=True)
    mclip_search("build", "features", *BUILD[2:])
    assert ids(mclip_search, "red") == ["a/red", "blue"]
    assert ids(mclip_search, "red", "--where", 'folder == ""') == ["blue"]
    # Dates and columns come with the list of their images.
    Path("list.tsv").write_text("id\tpath\tcamera\na/red\tphotos/red.png\tX100\nblue\tphotos/blue.png\t\n")
    features = ["build", "features", "--images-root", "list.tsv", "--model", "colours", "--output", "listed", *DATABASE]
    mclip_search(*features)
    found = mclip_search("query", "listed", "blue", *DATABASE, "--where", 'camera == "X100"', "--json")
    (hit,) = json.loads(found)["answers"][0]["results"]
    assert hit["file"] == str(Path("photos/red.png").absolute())


def test_options_that_do_not_fit_are_refused(mclip_search: Run) -> None:
    build = BUILD[: -len(DATABASE)]
    for extra, sentence in {
        ("--engine", "milvus"): "--engine milvus needs --uri or MILVUS_URI: http://HOST:19530, or a file that ends in",
        ("--uri", "x.db"): "--uri is the address of a database; give --engine milvus, too",
        ("--engine", "milvus", "--uri", "x.txt"): "is neither an address nor a file that ends in .db",
        ("--engine", "milvus", "--uri", "http://me:secret@host"): "set MILVUS_TOKEN to USER:PASSWORD",
        ("--engine", "milvus", "--uri", "no/x.db"): "does not exist; create it first",
        ("--kind", "diskann"): "--kind diskann is for --engine milvus",
    }.items():
        printed = mclip_search(*build, *extra, status=2)
        assert sentence in printed
        assert "secret" not in printed
    assert "no such database" in mclip_search("query", "colours", "red", *DATABASE, status=2)
    assert not Path("images.db").exists()
    mclip_search(*BUILD)
    assert "no such collection; create it with mclip-search build" in mclip_search(
        "query", "other", "red", *DATABASE, status=2
    )
    assert "--hubs needs a bank of queries, which only an index directory has" in mclip_search(
        "query", "colours", "red", *DATABASE, "--hubs", status=2
    )
    assert "cannot name a collection" in mclip_search("query", "a-b", "red", *DATABASE, status=2)
    assert "--where filters in a database" in mclip_search("query", "index", "red", "--where", "x == 1", status=2)
