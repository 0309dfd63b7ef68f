"""``mclip-search`` from a folder of pictures to answers, with a model whose answers are known."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import features as features_cli
from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import build as building
from mclip_fairseq.search import files, sources
from mclip_fairseq.search import index as searching
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.features import write_features
from tests.colours import COLOURS, NAMES, ColourModel, draw_colours
from tests.tiny_models import tiny_clip_directory

BUILD = ["build", "photos", "--model", "colours", "--output", "index", "--workers", "0"]
LOAD_MODEL, READ_TEXT = cli.load_model, Path.read_text
Run = Callable[..., str]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ColourModel:
    model = ColourModel()
    monkeypatch.setattr(cli, "load_model", lambda options: model)
    return model


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ColourModel, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command beside a folder of pictures; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # waits for whatever else writes to the disk
    draw_colours(tmp_path / "photos")

    def run(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == status, capsys.readouterr().err
        told = capsys.readouterr()
        return told.err if status else told.out

    return run


def found(run: Run, *arguments: object) -> list[str]:
    """Ids that a query finds, best first."""
    told = json.loads(run("query", "index", *arguments, "--json"))
    return [hit["id"] for hit in told["answers"][0]["results"]]


def test_a_folder_is_searched_in_any_language(run: Run) -> None:
    assert run(*BUILD) == "index: 8 images of 5 dimensions, exact\n"
    for word in ("blue", "ein blauer Punkt ist blau", "青", "أزرق"):
        assert found(run, word, "-k", 3)[0] == "blue.png"
    table = run("query", "index", "grün", "rot", "-k", 2).splitlines()
    assert table[0] == "grün"
    assert table[1].split() == ["rank", "score", "id"]
    assert table[2].split()[2] == "green.png"
    assert [line.split()[2] for line in table if line.startswith("   1")] == ["green.png", "red.png"]
    told = json.loads(run("query", "index", "--json", "weiß"))  # a text behind an option
    assert told["images"] == 8
    assert told["answers"][0]["query"] == "weiß"
    first = told["answers"][0]["results"][0]
    assert (first["rank"], first["id"], Path(first["file"]).name) == (1, "white.png", "white.png")
    assert 0.9 < first["score"] <= 1.0001


def test_a_file_of_queries_is_one_batch_and_an_image_is_a_query(run: Run, model: ColourModel, tmp_path: Path) -> None:
    run(*BUILD)
    Path("queries.txt").write_text("rot\nblau\n緑\n", encoding="utf-8")
    told = json.loads(run("query", "index", "--queries", "queries.txt", "-k", 1, "--json"))
    assert [a["results"][0]["id"] for a in told["answers"]] == ["red.png", "blue.png", "green.png"]
    assert model.batches == [3]
    Image.new("RGB", (30, 50), COLOURS["purple"]).save("asked.jpg")
    assert found(run, "--image", "asked.jpg")[0] == "purple.png"


def test_languages_are_compared(run: Run) -> None:
    run(*BUILD)
    words = [f"{language}={names['red']}" for language, names in NAMES.items()]
    told = json.loads(run("query", "index", "--languages", "en=red", *words, "it=blue", "-k", 3, "--json"))
    comparison = told["comparison"]
    assert comparison["target"] == "red.png"
    assert {language: row["rank"] for language, row in comparison["languages"].items()}["ja"] == 1
    assert comparison["languages"]["it"]["rank"] > 1
    assert comparison["languages"]["en"]["shared"] == comparison["languages"]["ar"]["shared"] == 3
    ranks = [row["rank"] for row in comparison["languages"].values()]
    assert comparison["rank_std"] == pytest.approx(np.std(ranks))
    assert [answer["language"] for answer in told["answers"]] == ["en", *NAMES, "it"]
    table = run("query", "index", "--languages", "en=red", *words, "--target", "green.png")
    assert "rank of green.png" in table
    assert "standard deviation of the rank over the languages: 0.00" in table
    run("query", "index", "--languages", "en=red", "de", status=2)
    run("query", "index", "--languages", "en=red", "--target", "gone.png", status=2)


def test_the_images_found_are_drawn(run: Run) -> None:
    run(*BUILD)
    run("query", "index", "red", "青", "-k", 3, "--show", "grid.png")
    with Image.open("grid.png") as grid:
        assert grid.width > grid.height > 200
        pixels = np.asarray(grid.convert("RGB")).reshape(-1, 3)
    assert {tuple(COLOURS["red"]), tuple(COLOURS["blue"])} <= set(map(tuple, pixels.tolist()))


def test_a_deleted_image_leaves_its_place_white(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(*BUILD)
    Path("photos/red.png").unlink()
    assert cli.main(["query", "index", "red", "--show", "grid.png", "-k", "2"]) == 0
    told = capsys.readouterr()
    assert told.err == "mclip-search: the picture of 'red.png' cannot be read any more; its place is white\n"
    assert "red.png" in told.out
    assert Path("grid.png").is_file()


def test_images_are_added_removed_and_replaced_without_a_rebuild(run: Run) -> None:
    for name in ("yellow", "blue"):
        shutil.move(f"photos/{name}.png", f"{name}.png")
    run(*BUILD)
    before = json.loads(Path("index/index.json").read_text())
    assert found(run, "blue")[0] != "blue.png"
    shutil.move("blue.png", "photos/blue.png")
    assert run("add", "index", "photos", "--workers", 0) == "index: 1 images added, 6 were there already\n"
    assert run("add", "index", "photos") == "index: nothing to add, all 7 images are there\n"
    assert found(run, "blue")[0] == "blue.png"
    assert run("remove", "index", "red.png", "black.png") == "index: 2 images removed, 5 are left\n"
    assert set(found(run, "red")) == {"orange.png", "green.png", "blue.png", "purple.png", "white.png"}
    run("add", "index", "photos", "--workers", 0)
    assert found(run, "red")[0] == "red.png"
    Image.new("RGB", (9, 9), COLOURS["yellow"]).save("photos/green.png")
    assert "1 replaced" not in run("add", "index", "photos")
    told = run("add", "index", "photos", "--replace", "--workers", 0)
    assert told == "index: 0 images added, 7 replaced\n"
    assert found(run, "yellow")[0] == "green.png"
    after = json.loads(Path("index/index.json").read_text())
    assert after["model"] == before["model"]
    assert len(after["made_by"]) == 5
    assert sorted(path.name for path in Path("index").iterdir()) == [
        ".lock",
        "index.json",
        "rows-00004.tsv",
        "vectors-00004.faiss",
    ]


def test_an_id_never_comes_to_mean_another_picture_unasked(run: Run) -> None:
    run(*BUILD)
    draw_colours(Path("others"), ["red"])
    message = run("add", "index", "others", status=2)
    assert "the id 'red.png' already names another picture" in message
    Path("list.tsv").write_text("mine\tothers/red.png\n", encoding="utf-8")
    run("add", "index", "list.tsv", "--workers", 0)
    assert set(found(run, "rot")[:2]) == {"mine", "red.png"}
    told = json.loads(run("query", "index", "rot", "--json", "-k", 2))
    files = {hit["id"]: Path(hit["file"]).parent.name for hit in told["answers"][0]["results"]}
    assert files == {"mine": "others", "red.png": "photos"}


def test_features_are_not_encoded_again(run: Run, model: ColourModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)
    expected = run("query", "index", "blau", "--json")
    identity = {"name": "teacher", "sha256": "abc"}
    images = sorted(Path("photos").iterdir())
    write_features(
        "features", [p.name for p in images], model.encode_image(images).numpy(), model=identity, normalized=True
    )
    monkeypatch.setattr(model, "encode_image", None)
    command = ["build", "features", "--model", "colours", "--output"]
    run(*command, "second", "--images-root", "photos")
    assert json.loads(run("query", "second", "blau", "--json"))["answers"] == json.loads(expected)["answers"]
    run(*command, "third")
    assert json.loads(run("query", "third", "blau", "--json"))["answers"][0]["results"][0]["file"] is None
    assert "knows no pictures" in run("query", "third", "blau", "--show", "g.png", status=2)
    run("remove", "third", "blue.png")
    assert run("add", "third", "features") == "third: 1 images added, 7 were there already\n"
    assert json.loads(run("query", "third", "blau", "--json"))["answers"][0]["results"][0]["id"] == "blue.png"
    model.identity = {"teacher": {"sha256": "another"}}
    assert "teacher with weights abc" in run(*command, "fourth", status=2)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8", "pq"])
def test_kinds_say_what_they_cost(kind: str, run: Run, model: ColourModel) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 5)).astype(np.float32)
    identity = {"name": "teacher", "sha256": "abc"}
    write_features("features", [f"i{n}" for n in range(600)], vectors, model=identity, normalized=False)
    Path("texts.txt").write_text("red\n\nblau\n黒\n", encoding="utf-8")
    more = ["--bytes", 1] if kind == "pq" else []
    for output, queries in (("index", []), ("other", ["--recall-queries", "texts.txt"])):
        told = run("build", "features", "--model", "m", "--output", output, "--kind", kind, *more, *queries)
        assert f"{kind}: finds" in told
        stored = json.loads(Path(output, "index.json").read_text())
        assert stored["recall"]["queries"] == (3 if queries else 256)
        assert stored["recall"]["effort"] == stored["effort"]
        assert f"{100 * stored['recall']['recall_at_k']:.1f} %" in told
        assert stored["recall"]["recall_at_k"] > (0.1 if kind == "pq" else 0.9)
    before = found(run, "red")
    run("remove", "index", before[0])
    assert before[0] not in found(run, "red")
    write_features("more", ["new"], model.encode_text(["red"]).numpy(), model=identity, normalized=True)
    run("add", "index", "more")
    assert "new" in found(run, "red")[: 10 if kind == "pq" else 1]


def test_an_interrupted_encoding_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch, model: ColourModel) -> None:
    monkeypatch.setattr(sources, "SHARD_ROWS", 3)
    encode = model.encode_image
    seen: list[int] = []

    def failing(images: Any, **options: Any) -> Any:
        if len(seen) == 2:
            raise ValueError("power cut")
        seen.append(len(images))
        return encode(images, **options)

    monkeypatch.setattr(model, "encode_image", failing)
    assert "power cut" in run(*BUILD, status=2)
    assert "its index is not finished" in run("query", "index", "red", status=2)

    def counting(images: Any, **options: Any) -> Any:
        seen.append(len(images))
        return encode(images, **options)

    monkeypatch.setattr(model, "encode_image", counting)
    run(*BUILD)
    assert seen == [3, 3, 2]  # nothing twice
    resumed = SearchIndex.open("index")
    shutil.rmtree("index")
    run(*BUILD)
    straight = SearchIndex.open("index")
    assert resumed.manifest["files"] == straight.manifest["files"]
    assert not Path("index/partial").exists()


def test_a_language_whose_lists_are_emptied_is_answered(run: Run) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(5), 100, axis=0) + 0.01 * rng.normal(size=(500, 5))
    write_features("features", [f"i{n}" for n in range(500)], vectors, model={"name": "t"}, normalized=False)
    run("build", "features", *BUILD[2:], "--kind", "ivf", "--lists", 5, "--effort", 1)
    near = found(run, "red", "-k", 100)
    Path("near").write_text("\n".join(near), encoding="utf-8")
    told = run("remove", "index", "--ids", "near")
    assert told == (
        "index: 100 images removed, 400 are left; its recall, measured with other images, is no longer claimed\n"
    )
    assert json.loads(Path("index/index.json").read_text())["recall"] is None
    assert not set(near) & set(found(run, "red"))
    assert "rank of" in run("query", "index", "--languages", "en=red", "de=rot")


@pytest.mark.parametrize("part", ["rows", "vectors"])
def test_an_addition_may_end_while_the_index_is_opened(
    part: str, run: Run, model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*BUILD)
    verified = searching.verified

    def slow(folder: Path, entry: Any) -> Path:
        path = verified(folder, entry)
        if entry["file"].startswith(part):
            monkeypatch.setattr(searching, "verified", verified)
            Image.new("RGB", (9, 9), COLOURS["red"]).save("photos/new.png")
            assert cli.main(["add", "index", "photos", "--workers", "0"]) == 0
        return path

    monkeypatch.setattr(searching, "verified", slow)
    assert len(SearchIndex.open("index")) == 9


def cut(owner: Any, name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a method fail once, after so many calls."""
    works, seen = getattr(owner, name), []

    def failing(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == calls + 1:
            raise ValueError("power cut")
        return works(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("addition", [False, True])
def test_a_picture_changed_meanwhile_is_encoded_again(
    addition: bool, run: Run, monkeypatch: pytest.MonkeyPatch, model: ColourModel
) -> None:
    monkeypatch.setattr(sources, "SHARD_ROWS", 3)
    command = ["add", "index", "photos", "--replace", "--workers", 0] if addition else BUILD
    if addition:
        run(*BUILD)
    cut(model, "encode_image", 2, monkeypatch)
    assert "power cut" in run(*command, status=2)
    shutil.copy("photos/red.png", "photos/black.png")  # of the first shard
    run(*command)
    assert set(found(run, "red")[:2]) == {"red.png", "black.png"}


def test_what_is_indexed_of_other_features_is_not_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, model: ColourModel
) -> None:
    vectors, ids = np.eye(5, dtype=np.float32), [f"i{n}" for n in range(5)]
    for name, rows in (("one", vectors), ("two", vectors[::-1])):
        write_features(name, ids, rows, model={"name": "t"}, normalized=True)
    monkeypatch.setattr(building, "BLOCK", 2)
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    cut(model, "encode_image_features", 2, monkeypatch)
    assert "power cut" in run("build", "one", *BUILD[2:], status=2)
    run("build", "two", *BUILD[2:])
    index = SearchIndex.open("index").searcher.index
    assert np.array_equal(index.reconstruct_n(0, 5), vectors[::-1])


def test_what_is_indexed_of_other_pictures_is_not_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BLOCK", 3)
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    cut(building.FeatureStore, "take", 1, monkeypatch)
    assert "power cut" in run(*BUILD, status=2)
    assert Path("index/partial/saved.json").exists()
    shutil.copy("photos/red.png", "photos/black.png")
    run(*BUILD)
    assert set(found(run, "red")[:2]) == {"red.png", "black.png"}


def test_an_interrupted_indexing_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch, model: ColourModel) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    write_features("features", [f"i{n}" for n in range(500)], vectors, model={"name": "t"}, normalized=False)
    command = ["build", "features", "--model", "m", "--kind", "ivf", "--lists", 8, "--output"]
    monkeypatch.setattr(building, "BLOCK", 100)
    run(*command, "straight")
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    project, rows = model.encode_image_features, 0

    def failing(features: Any, **options: Any) -> Any:
        nonlocal rows
        rows += len(features)
        if rows > 850:  # 500 to train, then 100 at a time
            raise ValueError("power cut")
        return project(features, **options)

    monkeypatch.setattr(model, "encode_image_features", failing)
    run(*command, "index", status=2)
    assert json.loads(Path("index/partial/saved.json").read_text())["rows"] == 300
    trained: list[int] = []
    monkeypatch.setattr(building, "training_rows", lambda *a: trained.append(1))
    monkeypatch.setattr(model, "encode_image_features", project)
    run(*command, "index")
    assert not trained
    files = [json.loads(Path(name, "index.json").read_text())["files"] for name in ("straight", "index")]
    assert files[0] == files[1]


def test_a_killed_addition_leaves_the_index_as_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move("photos/red.png", "red.png")
    run(*BUILD)
    before = {path.name: path.read_bytes() for path in Path("index").iterdir()}
    shutil.move("red.png", "photos/red.png")
    monkeypatch.setattr("mclip_fairseq.search.change.write_manifest", lambda *a: (_ for _ in ()).throw(OSError("cut")))
    run("add", "index", "photos", "--workers", 0, status=2)
    assert {name: Path("index", name).read_bytes() for name in before} == before
    assert len(found(run, "red")) == 7
    monkeypatch.undo()


def test_two_changes_at_once_are_refused(run: Run, tmp_path: Path) -> None:
    run(*BUILD)
    code = "import fcntl,sys; f=open('index/.lock'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "another mclip-search is changing this index" in run("remove", "index", "red.png", status=2)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    run("remove", "index", "red.png")


def test_an_unreadable_picture_is_named_or_left_out(run: Run) -> None:
    Path("photos/broken.jpg").write_text("<html>not found</html>")
    message = run(*BUILD, status=2)
    assert "1 of 9 inputs cannot be read" in message
    assert "broken.jpg: is not an image in a known format" in message
    told = run(*BUILD, "--skip-budget", 1)
    assert told == "index: 8 images of 5 dimensions, exact; 1 that cannot be read are left out\n"
    told = run("add", "index", "photos", "--workers", 0, "--skip-budget", 1)
    assert told == "index: 0 images added, 8 were there already, 1 that cannot be read are left out\n"


def test_a_build_goes_on_when_the_broken_picture_is_gone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/broken.jpg").write_text("<html>not found</html>")
    run(*BUILD, status=2)
    Path("photos/broken.jpg").unlink()
    assert cli.main(BUILD) == 0
    told = capsys.readouterr()
    assert told.out == "index: 8 images of 5 dimensions, exact\n"
    assert "index: images were added, taken out or changed since this was interrupted; it is begun anew" in told.err


def test_more_pixels_are_allowed_where_that_is_advised(run: Run) -> None:
    assert "allow more with --max-pixels" in run(*BUILD, "--max-pixels", 100, status=2)
    run(*BUILD, "--max-pixels", 96 * 64)
    Image.new("RGB", (9, 9), COLOURS["white"]).save("photos/new.png")
    assert "allow more with --max-pixels" in run("add", "index", "photos", "--max-pixels", 80, status=2)
    run("add", "index", "photos", "--max-pixels", 81)
    assert "allow more with --max-pixels" in run(
        "query", "index", "--image", "photos/new.png", "--max-pixels", 80, status=2
    )
    assert found(run, "--image", "photos/new.png", "--max-pixels", 81)


def test_no_picture_is_left_to_build_of(run: Run) -> None:
    Path("broken").mkdir()
    Path("broken/a.png").write_text("no picture")
    command = ["build", "broken", *BUILD[2:], "--skip-budget", 1, "--kind", "hnsw"]
    assert "none of its images can be read" in run(*command, status=2)


def test_an_id_is_no_path_of_this_machine(run: Run, tmp_path: Path) -> None:
    Path("list.txt").write_text(f"photos/red.png\n{tmp_path}/photos/blue.png\n", encoding="utf-8")
    message = run("build", "list.txt", *BUILD[2:], status=2)
    assert "(number 2) is a path of this machine" in message
    assert "id<TAB>path" in message
    Path("list.txt").write_text(f"blue\t{tmp_path}/photos/blue.png\n", encoding="utf-8")
    run("build", "list.txt", *BUILD[2:])
    assert found(run, "blue") == ["blue"]


def test_an_unreadable_folder_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/private").mkdir()
    scan = __import__("os").scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    assert run(*BUILD, status=2) == "mclip-search: error: photos/private: cannot be read: Permission denied\n"


def test_what_may_not_be_read_or_written_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)
    works = Path.is_file

    def closed(path: Path) -> bool:
        if path.parent.name in ("private", "photos"):
            raise PermissionError(13, "Permission denied", str(path))
        return works(path)

    monkeypatch.setattr(Path, "is_file", closed)
    told = "you have no permission to read it; ask its owner for it\n"
    assert run("query", "private", "red", status=2) == f"mclip-search: error: private: {told}"
    assert run("build", "photos", *BUILD[2:-3], "other", status=2) == f"mclip-search: error: photos: {told}"
    assert not Path("other").exists()


def test_an_index_that_cannot_be_written_to_is_asked_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)
    works = os.open

    def closed(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return works(path, flags, *more, **options)

    monkeypatch.setattr("os.open", closed)
    message = run("remove", "index", "red.png", status=2)
    assert message.startswith("mclip-search: error: index: cannot be written to: Permission denied; ask its owner")
    assert found(run, "red")[0] == "red.png"


def test_a_manifest_that_may_not_be_read_is_not_called_damaged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)

    def closed(path: Path, **options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", closed)
    message = run("query", "index", "red", status=2)
    assert message == "mclip-search: error: index/index.json: cannot be read: Permission denied\n"
    monkeypatch.setattr(Path, "read_text", READ_TEXT)
    monkeypatch.setattr(files, "file_sha256", closed)
    assert "rows-00001.tsv: you have no permission to read it" in run("query", "index", "red", status=2)


def test_nothing_is_made_where_no_index_is(run: Run) -> None:
    Path("file").write_text("text")
    assert "is not a search index" in run("remove", "typo", "x", status=2)
    assert "is not a search index" in run("add", "typo/x", "photos", status=2)
    assert "there is no such folder" in run("build", "typo", *BUILD[2:-3], "new", status=2)
    assert not Path("typo").exists()
    assert not Path("new").exists()
    for place in ("file", "file/index"):
        assert f"{place}: is a file, or below one" in run(*BUILD[:-3], place, status=2)


@pytest.mark.parametrize(
    ("device", "words"), [("bogus", "torch knows no such device"), ("cuda:99", "--device cuda:99")]
)
def test_a_device_that_is_not_there_is_one_sentence(
    device: str, words: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*BUILD)
    monkeypatch.setattr(cli, "load_model", LOAD_MODEL)
    assert words in run("query", "index", "red", "--model", "m", "--device", device, status=2)


def test_a_full_disk_leaves_nothing_behind(run: Run) -> None:
    write_features("features", [str(n) for n in range(9000)], np.ones((9000, 5)), model={"name": "t"}, normalized=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = run("build", "features", *BUILD[2:], status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "vectors-00001.faiss: cannot be written; make room on the disk" in message
    assert sorted(path.name for path in Path("index").iterdir()) == [".lock", "partial"]


def test_an_interruption_says_that_it_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch, model: ColourModel) -> None:
    monkeypatch.setattr(model, "encode_image", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    message = run(*BUILD, status=130)
    assert message.endswith("\nmclip-search: interrupted; the same command goes on from here\n")


def test_a_reader_that_has_seen_enough_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert cli.main(["query", "index", "red"]) == 0


def test_moved_pictures_are_still_the_same(run: Run) -> None:
    run(*BUILD)
    shutil.move("photos", "moved")
    Image.new("RGB", (9, 9), COLOURS["red"]).save("moved/new.png")
    message = run("add", "index", "moved", status=2)
    assert "photos/black.png; if the pictures have moved, say where they are now with --moved" in message
    assert "there is no such folder" in run("add", "index", "moved", "--moved", "photos", status=2)
    told = run("add", "index", "moved", "--moved", "moved", "--workers", 0)
    assert told == "index: 1 images added, 8 were there already\n"
    index = SearchIndex.open("index")
    assert [root.name for root in index.roots] == ["moved"]
    assert all(index.picture(row).is_file() for row in range(9))  # type: ignore[union-attr]
    shutil.move("moved", "again")
    run("add", "index", "again", "--moved", "again")
    assert run("query", "index", "red", "--show", "grid.png")


def test_dead_rows_are_dropped_when_they_are_the_most(run: Run) -> None:
    run(*BUILD)
    for _ in range(3):
        run("add", "index", "photos", "--replace", "--workers", 0)
        assert json.loads(Path("index/index.json").read_text())["rows"] <= 16
    assert [found(run, name)[0] for name in COLOURS] == [f"{name}.png" for name in COLOURS]
    run("remove", "index", *(f"{name}.png" for name in COLOURS if name != "red"))
    manifest = json.loads(Path("index/index.json").read_text())
    assert (manifest["rows"], manifest["removed"]) == (1, [])
    assert found(run, "blue") == ["red.png"]
    run("remove", "index", "red.png")
    assert found(run, "blue") == []
    assert run("add", "index", "photos", "--workers", 0) == "index: 8 images added\n"
    assert found(run, "blue")[0] == "blue.png"


def test_an_index_of_another_model_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BUILD)
    monkeypatch.setattr(cli, "load_model", lambda options: ColourModel("f" * 64))
    for command in (["query", "index", "red"], ["add", "index", "others"], ["serve", "index"]):
        draw_colours(Path("others"), ["white"]).joinpath("white.png").rename("others/new.png")
        message = run(*command, status=2)
        assert "was made with the model 'colours' (fingerprint 000000000000)" in message
        assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["query", "index", "   "], "the query is empty"),
        (["query", "index", "x" * 100_000], "the query has 100000 characters; give at most 2000"),
        (["query", "index"], "give a text, --queries FILE"),
        (["query", "index", "red", "--queries", "q.txt"], "one of them"),
        (["query", "index", "--image", "missing.png"], "missing.png: does not exist"),
        (["query", "index", "red", "--show", "photos"], "--show photos: names no kind of picture; write photos.png"),
        (["query", "index", "red", "--target", "red.png"], "give both"),
        (["query", "photos", "red"], "is not a search index"),
        (["query", "nowhere", "red"], "is not a search index"),
        (["query", "index", "red", "--images-root", "a", "--images-root", "b"], "has pictures in 1 folders"),
        (["remove", "index", "red.png", "pink.png"], "'pink.png'; nothing is removed"),
        (["remove", "index"], "no image is named"),
        (["add", "index", "nowhere"], "nowhere: there is no such folder"),
        (["add", "index", "photos", "--images-root", "photos"], "--images-root goes with a feature directory"),
        (BUILD, "holds an index already"),
        ([*BUILD[:-3], "other", "--kind", "pq"], "at least 256 images"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(run: Run, arguments: list[str], words: str) -> None:
    run(*BUILD)
    before = Path("index/index.json").read_bytes()
    message = run(*arguments, status=2)
    assert message.startswith("mclip-search: error: ")
    assert message.count("\n") == 1
    assert words in message
    assert Path("index/index.json").read_bytes() == before


def test_unknown_options_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["query", "index", "red", "--quick"], ["remove", "index", "--all"], ["find"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


def test_a_real_model_reads_pictures_and_its_features_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, images = str(tiny_clip_directory(tmp_path / "teacher")), tmp_path / "images"
    images.mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 40)).save(images / f"img{number}.png")
    command = ["--model", teacher, "--images", str(images), "--output", str(tmp_path / "features"), "--workers", "0"]
    assert features_cli.main([*command, "--store-dtype", "float32", "--device", "cpu"]) == 0
    common = ["--model", teacher, "--device", "cpu", "--output"]
    assert cli.main(["build", str(images), *common, str(tmp_path / "a"), "--workers", "0"]) == 0
    assert cli.main(["build", str(tmp_path / "features"), *common, str(tmp_path / "b")]) == 0
    capsys.readouterr()
    answers = []
    for name in ("a", "b"):
        assert cli.main(["query", str(tmp_path / name), "a red house", "--device", "cpu", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        answers.append([(hit["id"], pytest.approx(hit["score"], abs=1e-4)) for hit in told["answers"][0]["results"]])
    assert answers[0] == answers[1]
    picture = images / "img7.png"
    assert cli.main(["query", str(tmp_path / "a"), "--image", str(picture), "--device", "cpu", "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["1", "1.000", "img7.png"]
