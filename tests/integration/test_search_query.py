"""`mclip-search build` and `query`: from a folder of images to answers, with a model whose answers are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import features as features_cli
from mclip_fairseq.cli import search as cli
from mclip_fairseq.storage.features import write_features
from tests.colours import COLOURS, NAMES, ColourModel, draw_colours
from tests.search_cli import BUILD, Run, hits
from tests.tiny_models import tiny_clip_directory


def test_a_folder_is_searched_in_any_language(mclip_search: Run) -> None:
    assert mclip_search(*BUILD) == "index: 8 images of 5 dimensions, exact\n"
    for word in ("blue", "ein blauer Punkt ist blau", "青", "أزرق"):
        assert hits(mclip_search, word, "-k", 3)[0] == "blue.png"
    table = mclip_search("query", "index", "grün", "rot", "-k", 2).splitlines()
    assert table[0] == "grün"
    assert table[1].split() == ["rank", "score", "id"]
    assert table[2].split()[2] == "green.png"
    assert [line.split()[2] for line in table if line.startswith("   1")] == ["green.png", "red.png"]
    printed = json.loads(mclip_search("query", "index", "--json", "weiß"))  # a text behind an option
    assert printed["images"] == 8
    assert printed["answers"][0]["query"] == "weiß"
    first = printed["answers"][0]["results"][0]
    assert (first["rank"], first["id"], Path(first["file"]).name) == (1, "white.png", "white.png")
    assert 0.9 < first["score"] <= 1.0001


def test_a_file_of_queries_is_one_batch_and_an_image_is_a_query(
    mclip_search: Run, colour_model: ColourModel, tmp_path: Path
) -> None:
    mclip_search(*BUILD)
    Path("queries.txt").write_text("rot\nblau\n緑\n", encoding="utf-8")
    printed = json.loads(mclip_search("query", "index", "--queries", "queries.txt", "-k", 1, "--json"))
    assert [a["results"][0]["id"] for a in printed["answers"]] == ["red.png", "blue.png", "green.png"]
    assert colour_model.batches == [3]
    Image.new("RGB", (30, 50), COLOURS["purple"]).save("asked.jpg")
    assert hits(mclip_search, "--image", "asked.jpg")[0] == "purple.png"


def test_languages_are_compared(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    words = [f"{language}={names['red']}" for language, names in NAMES.items()]
    printed = json.loads(mclip_search("query", "index", "--languages", "en=red", *words, "it=blue", "-k", 3, "--json"))
    comparison = printed["comparison"]
    assert comparison["target"] == "red.png"
    assert {language: row["rank"] for language, row in comparison["languages"].items()}["ja"] == 1
    assert comparison["languages"]["it"]["rank"] > 1
    assert comparison["languages"]["en"]["shared"] == comparison["languages"]["ar"]["shared"] == 3
    ranks = [row["rank"] for row in comparison["languages"].values()]
    assert comparison["rank_std"] == pytest.approx(np.std(ranks))
    assert [answer["language"] for answer in printed["answers"]] == ["en", *NAMES, "it"]
    table = mclip_search("query", "index", "--languages", "en=red", *words, "--target", "green.png")
    assert "rank of green.png" in table
    assert "standard deviation of the rank over the languages: 0.00" in table
    mclip_search("query", "index", "--languages", "en=red", "de", status=2)
    mclip_search("query", "index", "--languages", "en=red", "--target", "gone.png", status=2)


def test_answers_are_drawn(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    mclip_search("query", "index", "red", "青", "-k", 3, "--show", "grid.png")
    with Image.open("grid.png") as grid:
        assert grid.width > grid.height > 200
        pixels = np.asarray(grid.convert("RGB")).reshape(-1, 3)
    assert {tuple(COLOURS["red"]), tuple(COLOURS["blue"])} <= set(map(tuple, pixels.tolist()))


def test_a_deleted_image_is_drawn_white(mclip_search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mclip_search(*BUILD)
    Path("photos/red.png").unlink()
    assert cli.main(["query", "index", "red", "--show", "grid.png", "-k", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "mclip-search: the image 'red.png' can no longer be read; its place is left white\n"
    assert "red.png" in printed.out
    assert Path("grid.png").is_file()


def test_features_are_not_encoded_again(
    mclip_search: Run, colour_model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mclip_search(*BUILD)
    expected = mclip_search("query", "index", "blau", "--json")
    identity = {"name": "teacher", "sha256": "abc"}
    images = sorted(Path("photos").iterdir())
    write_features(
        "features", [p.name for p in images], colour_model.encode_image(images).numpy(), model=identity, normalized=True
    )
    monkeypatch.setattr(colour_model, "encode_image", None)
    command = ["build", "features", "--model", "colours", "--output"]
    mclip_search(*command, "second", "--images-root", "photos")
    assert json.loads(mclip_search("query", "second", "blau", "--json"))["answers"] == json.loads(expected)["answers"]
    mclip_search(*command, "third")
    assert json.loads(mclip_search("query", "third", "blau", "--json"))["answers"][0]["results"][0]["file"] is None
    assert "does not know where its images are" in mclip_search("query", "third", "blau", "--show", "g.png", status=2)
    mclip_search("remove", "third", "blue.png")
    assert mclip_search("add", "third", "features") == "third: 1 images added, 7 already in the index\n"
    assert json.loads(mclip_search("query", "third", "blau", "--json"))["answers"][0]["results"][0]["id"] == "blue.png"
    colour_model.identity = {"teacher": {"sha256": "another"}}
    assert "teacher with weights abc" in mclip_search(*command, "fourth", status=2)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8", "pq"])
def test_kinds_say_what_they_cost(kind: str, mclip_search: Run, colour_model: ColourModel) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 5)).astype(np.float32)
    identity = {"name": "teacher", "sha256": "abc"}
    write_features("features", [f"i{n}" for n in range(600)], vectors, model=identity, normalized=False)
    Path("texts.txt").write_text("red\n\nblau\n黒\n", encoding="utf-8")
    more = ["--bytes", 1] if kind == "pq" else []
    for output, queries in (("index", []), ("other", ["--recall-queries", "texts.txt"])):
        printed = mclip_search("build", "features", "--model", "m", "--output", output, "--kind", kind, *more, *queries)
        assert f"{kind}: finds" in printed
        stored = json.loads(Path(output, "index.json").read_text())
        assert stored["recall"]["queries"] == (3 if queries else 256)
        assert stored["recall"]["effort"] == stored["effort"]
        assert f"{100 * stored['recall']['recall_at_k']:.1f} %" in printed
        assert stored["recall"]["recall_at_k"] > (0.1 if kind == "pq" else 0.9)
    before = hits(mclip_search, "red")
    mclip_search("remove", "index", before[0])
    assert before[0] not in hits(mclip_search, "red")
    write_features("more", ["new"], colour_model.encode_text(["red"]).numpy(), model=identity, normalized=True)
    mclip_search("add", "index", "more")
    assert "new" in hits(mclip_search, "red")[: 10 if kind == "pq" else 1]


def test_a_reader_that_closes_the_pipe_is_not_an_error(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mclip_search(*BUILD)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert cli.main(["query", "index", "red"]) == 0


def test_an_index_of_a_different_model_is_refused(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mclip_search(*BUILD)
    monkeypatch.setattr(cli, "load_model", lambda *arguments: ColourModel("f" * 64))
    for command in (["query", "index", "red"], ["add", "index", "others"], ["serve", "index"]):
        draw_colours(Path("others"), ["white"]).joinpath("white.png").rename("others/new.png")
        message = mclip_search(*command, status=2)
        assert "was made with the model 'colours' (fingerprint 000000000000)" in message
        assert message.count("\n") == 1


def test_a_real_model_answers_alike_from_images_and_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        printed = json.loads(capsys.readouterr().out)
        answers.append([(hit["id"], pytest.approx(hit["score"], abs=1e-4)) for hit in printed["answers"][0]["results"]])
    assert answers[0] == answers[1]
    picture = images / "img7.png"
    assert cli.main(["query", str(tmp_path / "a"), "--image", str(picture), "--device", "cpu", "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["1", "1.000", "img7.png"]


HELP = """
import contextlib, io, sys
from mclip_fairseq.cli import features, search
for main, words in ((features.main, []), *((search.main, words) for words in ([], ["build"], ["query"], ["serve"]))):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*words, "--help"])
    assert "usage: mclip-" in printed.getvalue()
print(*sys.modules)
"""
QUERY = """
import sys
from mclip_fairseq.cli import search
from tests.colours import ColourModel
search.load_model = lambda *arguments: ColourModel()
assert search.main(["query", "index", "red", "--json"]) == 0
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("code", "expected", "unwanted"),
    [
        (HELP, "mclip_fairseq.cli.search", ["torch", "faiss", "transformers", "fairseq"]),
        (QUERY, "faiss", ["transformers", "fairseq", "matplotlib", "scipy", "starlette", "mclip_fairseq.evaluation"]),
    ],
)
def test_a_command_imports_only_what_it_uses(
    code: str, expected: str, unwanted: list[str], mclip_search: Run, repository_root: Path
) -> None:
    mclip_search(*BUILD)
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository_root)},
    )
    modules = result.stdout.splitlines()[-1].split()
    assert expected in modules
    assert not set(unwanted) & set(modules)


@pytest.mark.parametrize(
    "words", [["index", "-k", 2, "--", "-20 °C"], ["--", "index", "-20 °C"], ["index", "--", "-20 °C"]]
)
def test_what_stands_behind_two_dashes_is_the_query(mclip_search: Run, words: list[object]) -> None:
    mclip_search(*BUILD)
    assert mclip_search("query", *words).startswith("-20 °C\n")


def test_an_option_like_text_without_dashes_is_refused_with_a_hint(
    mclip_search: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mclip_search("query", "index", "-dog")
    assert "write -- before a text that begins with -" in capsys.readouterr().err


def test_a_query_that_the_model_does_not_know_is_said(
    mclip_search: Run, colour_model: ColourModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(colour_model, "count_known", lambda texts: [(int("red" in t), 1) for t in texts], raising=False)
    mclip_search(*BUILD)
    answers = json.loads(mclip_search("query", "index", "red", "BUTTERFLY", "--json"))["answers"]
    assert "warning" not in answers[0]
    assert answers[1]["warning"] == "the model knows no part of 'BUTTERFLY', so these images say nothing about it"
    assert cli.main(["query", "index", "BUTTERFLY"]) == 0
    assert "mclip-search: warning: the model knows no part of 'BUTTERFLY'" in capsys.readouterr().err
