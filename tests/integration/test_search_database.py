"""`mclip-search --engine`: the same commands on a collection of a database, here without a server."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.search.bank import read_bank
from mclip_fairseq.search.bank_files import ENDING, names_in
from mclip_fairseq.search.collection import Collection
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_cli import Run

PACKAGES = {"milvus": ("pymilvus", "milvus_lite"), "qdrant": ("qdrant_client",)}


@dataclass(frozen=True)
class Database:
    """A database without a server: its engine and its address."""

    engine: str
    uri: str

    @property
    def options(self) -> list[str]:
        return ["--engine", self.engine, "--uri", self.uri]

    @property
    def build(self) -> list[str]:
        return ["build", "photos", "--model", "colours", "--output", "colours", "--workers", "0", *self.options]

    @property
    def place(self) -> str:
        return f"{self.uri}, collection colours"


DATABASES = {each.engine: each for each in (Database("milvus", "images.db"), Database("qdrant", "images.qdrant"))}
# What differs between engines is tested with each of them.
MILVUS = pytest.mark.parametrize("database", ["milvus"], indirect=True)
QDRANT = pytest.mark.parametrize("database", ["qdrant"], indirect=True)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Database:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"needs the extra {request.param}")
    return DATABASES[request.param]


def stores() -> dict[str, Any]:
    """The store of each engine."""
    from mclip_fairseq.search.milvus import MilvusStore
    from mclip_fairseq.search.qdrant import QdrantStore

    return {"milvus": MilvusStore, "qdrant": QdrantStore}


def answers(run: Run, database: Database, *arguments: object) -> list[list[tuple[str, float]]]:
    """(id, score) of the hits of each query."""
    found = json.loads(run("query", "colours", *arguments, *database.options, "--json"))["answers"]
    return [[(hit["id"], hit["score"]) for hit in answer["results"]] for answer in found]


def ids(run: Run, database: Database, *arguments: object) -> list[str]:
    """The ids of the hits of one query."""
    return [name for name, _ in answers(run, database, *arguments)[0]]


def test_answers_are_those_of_an_exact_index(mclip_search: Run, database: Database) -> None:
    assert mclip_search(*database.build) == f"{database.place}: 8 images of 5 dimensions, exact\n"
    assert mclip_search(*database.build) == f"{database.place}: nothing to do, holds these 8 images already\n"
    mclip_search("build", "photos", "--model", "colours", "--output", "index", "--workers", "0")
    Path("queries.txt").write_text("red\nblau\n緑\n")
    expected = json.loads(mclip_search("query", "index", "--queries", "queries.txt", "--json"))["answers"]
    for found, right in zip(answers(mclip_search, database, "--queries", "queries.txt"), expected, strict=True):
        assert [name for name, _ in found] == [hit["id"] for hit in right["results"]]
        np.testing.assert_allclose([s for _, s in found], [hit["score"] for hit in right["results"]], atol=2e-6)
    hit = json.loads(mclip_search("query", "colours", "red", *database.options, "--json"))["answers"][0]["results"][0]
    assert hit["file"] == str(Path("photos/red.png").absolute())
    assert ids(mclip_search, database, "--image", "photos/green.png", "-k", 1) == ["green.png"]
    compare = ["query", "colours", *database.options, "--languages", "en=blue", "de=blau", "--target"]
    assert "rank of blue.png" in mclip_search(*compare, "blue.png")
    assert "has no image 'x'" in mclip_search(*compare, "x", status=2)


@MILVUS
def test_copies_count_once(mclip_search: Run, database: Database) -> None:
    shutil.copy("photos/red.png", "photos/copy.png")
    mclip_search(*database.build)
    assert sorted(ids(mclip_search, database, "red", "-k", 2)) == ["copy.png", "red.png"]
    assert len({*ids(mclip_search, database, "red", "-k", 2, "--unique")} & {"copy.png", "red.png"}) == 1


def test_images_are_added_changed_and_removed(mclip_search: Run, database: Database, colour_model: ColourModel) -> None:
    Path("photos/blue.png").rename("blue.png")
    mclip_search(*database.build)
    Path("blue.png").rename("photos/blue.png")
    add = ["add", "colours", "photos", "--workers", 0, *database.options]
    assert mclip_search(*add) == f"{database.place}: 1 images added, 7 already in the collection\n"
    assert mclip_search(*add) == f"{database.place}: nothing to add, all 8 images are already in the collection\n"
    assert ids(mclip_search, database, "blue")[0] == "blue.png"
    assert mclip_search("remove", "colours", "red.png", "red.png", "no.png", *database.options) == (
        f"{database.place}: 1 images removed, 7 left; 1 of the 2 ids are not in the collection, such as 'no.png'\n"
    )
    assert "red.png" not in ids(mclip_search, database, "red")
    assert mclip_search("remove", "colours", "red.png", *database.options).startswith(
        f"{database.place}: 0 images removed, 7 left; 1 of"
    )
    Image.new("RGB", (9, 9), COLOURS["yellow"]).save("photos/green.png")
    printed = mclip_search(*add)
    assert printed == (
        f"{database.place}: 1 images added, 1 changed since and encoded again, 6 already in the collection\n"
    )
    assert set(ids(mclip_search, database, "yellow", "-k", 2)) == {"green.png", "yellow.png"}
    assert mclip_search(*add, "--replace") == f"{database.place}: 0 images added, 8 replaced\n"
    assert "already holds other images or settings, or was changed since" in mclip_search(*database.build, status=2)


def test_an_id_never_silently_changes_its_image(mclip_search: Run, database: Database) -> None:
    mclip_search(*database.build)
    draw_colours(Path("others"), ["red", "black"])
    Image.new("RGB", (9, 9), COLOURS["blue"]).save("others/red.png")
    Path("others/black.png").rename("others/dark.png")
    printed = mclip_search("add", "colours", "others", "--workers", 0, *database.options, status=2)
    assert "the id 'red.png' already names a different image, red.png" in printed
    mclip_search("add", "colours", "others", "--workers", 0, *database.options, "--replace")
    assert set(ids(mclip_search, database, "blue", "-k", 2)) == {"blue.png", "red.png"}
    found = json.loads(mclip_search("query", "colours", "black", "-k", 9, *database.options, "--json"))
    files = {each["id"]: each["file"] for each in found["answers"][0]["results"]}
    assert files["dark.png"] == str(Path("others/dark.png").absolute())  # a second root folder
    assert files["white.png"] == str(Path("photos/white.png").absolute())


def test_an_interrupted_build_continues(
    mclip_search: Run, database: Database, colour_model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores()[database.engine]
    monkeypatch.setattr("mclip_fairseq.search.database.CHUNK", 3)
    upsert, written = store.upsert, list[int]()

    def dies_at_the_second(self: Any, records: Any, vectors: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        upsert(self, records, vectors)
        written.append(len(records))

    monkeypatch.setattr(store, "upsert", dies_at_the_second)
    assert "run the same command again to continue" in mclip_search(*database.build, status=130)
    assert "is not finished; run the mclip-search build that began it again" in mclip_search(
        "query", "colours", "red", *database.options, status=2
    )
    monkeypatch.setattr(store, "upsert", upsert)
    draw_colours(Path("others"), ["red"])
    printed = mclip_search("build", "others", *database.build[2:], status=2)  # other images are not mixed with these
    assert "holds 3 images that an interrupted build has written and others lacks; remove them" in printed
    encoded = list[int]()
    encode = colour_model.encode_image

    def counted(images: Any, **more: Any) -> Any:
        encoded.append(len(images))
        return encode(images, **more)

    monkeypatch.setattr(colour_model, "encode_image", counted)
    assert mclip_search(*database.build) == f"{database.place}: 8 images of 5 dimensions, exact\n"
    assert sum(encoded) == 5  # the three that were written are not encoded again
    assert len(ids(mclip_search, database, "red")) == 8


@MILVUS
@pytest.mark.parametrize("call", ["upsert", "delete"])
def test_a_killed_change_is_not_taken_for_the_build(
    call: str, mclip_search: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again ends well, and the build says that its images are not what the collection holds."""
    from mclip_fairseq.search import milvus

    mclip_search(*database.build)
    draw_colours(Path("others"), ["black"])
    Path("others/black.png").rename("others/dark.png")
    adds = ["add", "colours", "others", "--model", "colours", "--workers", "0", *database.options]
    change = adds if call == "upsert" else ["remove", "colours", "red.png", *database.options]
    write = getattr(milvus.MilvusStore, call)

    def dies(self: Any, *arguments: Any) -> None:
        write(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(milvus.MilvusStore, call, dies)
        mclip_search(*change, status=130)
    assert "was changed since" in mclip_search(*database.build, status=2)
    said = mclip_search(*change)
    assert ("all 1 images are already in the collection" if call == "upsert" else "0 images removed, 7 left") in said


@MILVUS
def test_unreadable_images_share_one_budget_over_the_chunks(
    mclip_search: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mclip_fairseq.search.database.CHUNK", 3)
    for name in ("blue", "yellow"):
        Path(f"photos/{name}.png").write_bytes(b"no image")
    printed = mclip_search(*database.build, "--skip-budget", 1, status=2)
    assert "more than --skip-budget 1 inputs cannot be read (1 were skipped before)" in printed
    assert mclip_search(*database.build, "--skip-budget", 2).endswith("exact; 2 unreadable images skipped\n")


LISTED = [
    "id\tpath\tdate\tcamera\tyear",
    "2024/red.png\t2024/red.png\t2024-05-01\tX100\t2024",
    "2024/blue.png\t2024/blue.png\t2024-07-01\t\t2024",
    "a\"b\\c'd\tgreen.png\t2023-01-01\tX100\t2023",
]


def check_filters(run: Run, database: Database, filters: dict[str, list[int]]) -> None:
    """Check which of the images of `LISTED` fit filters, by their numbers in the order of ids."""
    draw_colours(Path("photos/2024"), ["red", "blue"])
    Path("photos/list.tsv").write_text("\n".join(LISTED) + "\n")
    run("build", "photos/list.tsv", *database.build[2:])
    everything = ["2024/blue.png", "2024/red.png", "a\"b\\c'd"]
    for where, expected in filters.items():
        assert sorted(ids(run, database, "red", "--where", where)) == [everything[row] for row in expected], where


@MILVUS
def test_filters_of_milvus(mclip_search: Run, database: Database) -> None:
    filters = {
        'folder == "2024"': [0, 1],
        'folder like "20%"': [0, 1],
        'date >= "2024-06-01"': [0],
        'camera == "X100"': [1, 2],
        "year < 2024": [2],
        'camera == "X100" and year == 2024': [1],
    }
    check_filters(mclip_search, database, filters)
    for wrong in ('date = "', 'author == "x" and', 'connect = "retry"'):  # words of other errors, too
        refused = mclip_search("query", "colours", "red", *database.options, "--where", wrong, status=2)
        assert refused.startswith(f"mclip-search: error: --where {wrong}: is refused by {database.place}: ")
    # An id with quotes and backslashes is an id, not a part of a filter.
    removed = mclip_search("remove", "colours", "a\"b\\c'd", *database.options)
    assert removed == f"{database.place}: 1 images removed, 2 left\n"


@QDRANT
def test_filters_of_qdrant(mclip_search: Run, database: Database) -> None:
    folder = '{"key": "folder", "match": {"value": "2024"}}'
    x100 = '{"key": "camera", "match": {"value": "X100"}}'
    filters = {
        f'{{"must": [{folder}]}}': [0, 1],
        '{"must": [{"key": "date", "range": {"gte": "2024-06-01"}}]}': [0],
        f'{{"must": [{x100}]}}': [1, 2],
        '{"must": [{"key": "year", "range": {"lt": 2024}}]}': [2],
        f'{{"must": [{x100}], "must_not": [{folder}]}}': [2],
    }
    check_filters(mclip_search, database, filters)
    for wrong in ("date > 2024", "[]", '{"mist": []}'):
        refused = mclip_search("query", "colours", "red", *database.options, "--where", wrong, status=2)
        assert refused.startswith(f"mclip-search: error: --where {wrong}: is not a filter of Qdrant in JSON: ")
        assert refused.count("\n") == 1


@MILVUS
def test_the_day_of_a_file_is_its_date(mclip_search: Run, database: Database) -> None:
    os.utime("photos/red.png", (86400 * 365.25 * 10,) * 2)  # 1980
    mclip_search(*database.build)
    assert ids(mclip_search, database, "red", "--where", 'date < "2000-01-01"') == ["red.png"]


@pytest.mark.parametrize(
    ("database", "kind"), [("milvus", "hnsw"), ("milvus", "ivf"), ("qdrant", "sq8")], indirect=["database"]
)
def test_the_recall_of_an_approximate_kind_is_printed(mclip_search: Run, database: Database, kind: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.new("RGB", (4, 4), tuple(rng.integers(0, 256, 3).tolist())).save(f"photos/{number}.png")
    printed = mclip_search(*database.build, "--kind", kind)
    assert printed.startswith(f"{database.place}: 48 images of 5 dimensions, {kind}\n{kind}: finds ")
    share = float(printed.split("finds ")[1].split(" %")[0])
    assert share >= 95
    assert "(48 images of the index as queries, " in printed


def test_another_model_or_width_is_refused(mclip_search: Run, database: Database, colour_model: ColourModel) -> None:
    mclip_search(*database.build)
    colour_model.dim = 6
    assert f"{database.place}: holds vectors of 5 dimensions, not of 6" in mclip_search(
        "query", "colours", "red", *database.options, status=2
    )
    colour_model.fingerprint = "1" * 64
    for command in (
        ["query", "colours", "red", *database.options],
        ["add", "colours", "photos", *database.options, "--replace"],
        database.build,
    ):
        assert "was made with the model 'colours' (fingerprint 000000000000)" in mclip_search(*command, status=2)


@MILVUS
def test_features_go_into_a_collection(mclip_search: Run, database: Database, colour_model: ColourModel) -> None:
    from mclip_fairseq.storage.features import write_features

    vectors = colour_model.encode_image([Path(f"photos/{name}.png") for name in ("red", "blue")]).numpy()
    write_features("features", ["a/red", "blue"], vectors, model={"name": "t"}, normalized=True)
    mclip_search("build", "features", *database.build[2:])
    assert ids(mclip_search, database, "red") == ["a/red", "blue"]
    assert ids(mclip_search, database, "red", "--where", 'folder == ""') == ["blue"]
    # Dates and columns come with the list of their images.
    Path("list.tsv").write_text("id\tpath\tcamera\na/red\tphotos/red.png\tX100\nblue\tphotos/blue.png\t\n")
    listed = ["--images-root", "list.tsv", "--model", "colours", "--output", "listed"]
    mclip_search("build", "features", *listed, *database.options)
    found = mclip_search("query", "listed", "blue", *database.options, "--where", 'camera == "X100"', "--json")
    (hit,) = json.loads(found)["answers"][0]["results"]
    assert hit["file"] == str(Path("photos/red.png").absolute())


def test_a_collection_is_calibrated(mclip_search: Run, database: Database) -> None:
    mclip_search("build", "photos", "--model", "colours", "--output", "index", "--workers", "0")
    mclip_search(*database.build)
    pairs = [" ".join(pair) for pair in itertools.combinations(COLOURS, 2)]  # between two images, on none of them
    Path("bank.tsv").write_text("".join(f"en\t{pair}\n" for pair in pairs))
    Path("test.tsv").write_text("".join(f"en\t{colour}\t{colour}.png\n" for colour in COLOURS for _ in range(3)))
    for bank in (["bank.tsv", "--test", "test.tsv"], ["bank.tsv"]):  # the second one replaces the first
        printed = mclip_search("calibrate", "colours", *database.options, "--bank", *bank)
        assert printed.startswith(f"{database.place}_mclip_bank: 28 queries (en 28)\n")
        assert printed.partition("\n")[2] == mclip_search("calibrate", "index", "--bank", *bank).partition("\n")[2]
    queries = ["red", "black red", "-k", "3", "--hubs", "--json"]
    found, right = (
        json.loads(mclip_search("query", *place, *queries))["answers"]
        for place in (("colours", *database.options), ("index",))
    )
    assert [answer["fits"] for answer in found] == [answer["fits"] for answer in right] == [True, False]
    assert [[hit["id"] for hit in answer["results"]] for answer in found] == [
        [hit["id"] for hit in answer["results"]] for answer in right
    ]
    wheres = {"milvus": "size < 0", "qdrant": '{"must": [{"key": "size", "range": {"lt": 0}}]}'}
    none = json.loads(
        mclip_search("query", "colours", "red", *database.options, "--where", wheres[database.engine], "--json")
    )
    assert none["answers"] == [{"query": "red", "fits": False, "results": []}]
    mclip_search("remove", "colours", "red.png", *database.options)
    damage_bank(stores()[database.engine](database.uri, "colours"))
    assert f"{database.place}_mclip_bank: is damaged, or of another version; run mclip-search calibrate again" in (
        mclip_search("query", "colours", "red", *database.options, status=2)
    )


def damage_bank(store: Any) -> None:
    """Lose a query of the bank of a collection without red.png."""
    bank = read_bank(Collection(store))
    assert bank is not None
    assert len(bank.nearest) == 28
    assert "red.png" not in bank.nearest
    beside = store.beside(ENDING)
    beside.delete(names_in(beside.facts())[:1])


@MILVUS
def test_options_that_do_not_fit_are_refused(mclip_search: Run, database: Database) -> None:
    build = database.build[: -len(database.options)]
    for extra, sentence in {
        ("--engine", "milvus"): "--engine milvus needs --uri or MILVUS_URI: http://HOST:19530, or a path that ends in",
        ("--engine", "qdrant"): "--engine qdrant needs --uri or QDRANT_URI: http://HOST:6333, or a path that ends in",
        ("--uri", "x.db"): "--uri is the address of a database; give its --engine, too",
        ("--engine", "milvus", "--uri", "x.txt"): "is neither an address nor a path that ends in .db",
        ("--engine", "qdrant", "--uri", "http://me:secret@host"): "set QDRANT_TOKEN to an API key",
        ("--engine", "milvus", "--uri", "http://me:secret@host"): "set MILVUS_TOKEN to USER:PASSWORD",
        ("--engine", "milvus", "--uri", "no/x.db"): "does not exist; create it first",
        ("--kind", "diskann"): "--kind diskann is for --engine milvus",
    }.items():
        printed = mclip_search(*build, *extra, status=2)
        assert sentence in printed
        assert "secret" not in printed
    assert "no such database" in mclip_search("query", "colours", "red", *database.options, status=2)
    assert not Path("images.db").exists()
    mclip_search(*database.build)
    assert "no such collection; create it with mclip-search build" in mclip_search(
        "query", "other", "red", *database.options, status=2
    )
    assert "has no bank of queries, which --hubs needs; run mclip-search calibrate" in mclip_search(
        "query", "colours", "red", *database.options, "--hubs", status=2
    )
    assert "cannot name a collection" in mclip_search("query", "a-b", "red", *database.options, status=2)
    assert "--where filters in a database" in mclip_search("query", "index", "red", "--where", "x == 1", status=2)
