"""Caption files, galleries, results per language, tables and pictures."""

from __future__ import annotations

import gzip
import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq.encoding.captions import read_caption_files, read_language_captions
from mclip_fairseq.encoding.galleries import IdIndex, ImageGallery, encode_in_chunks
from mclip_fairseq.evaluation import (
    average_languages,
    evaluate_languages,
    format_table,
    provenance,
    write_report,
)
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_metrics
from mclip_fairseq.evaluation.reports.fonts import add_fonts, families_for
from mclip_fairseq.evaluation.reports.pictures import Example, draw_examples, draw_recalls, pick_queries, wrap
from mclip_fairseq.evaluation.reports.report import format_notes
from mclip_fairseq.storage.errors import UserError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


# --- languages


def one_hot(rows: list[int], width: int = 4) -> torch.Tensor:
    return torch.eye(width)[rows]


def test_languages_by_hand() -> None:
    """English finds everything; German takes image 1 for 0 and 0 for 1."""
    own = torch.arange(4)
    text = {"en": one_hot([0, 1, 2, 3]), "de": one_hot([1, 0, 2, 3])}
    report = evaluate_languages(text, torch.eye(4), {"en": own, "de": own})
    assert list(report["results"]) == ["en", "de"]
    assert report["results"]["en"]["t2i_R@1"] == 100
    assert report["results"]["de"]["t2i_R@1"] == 50
    assert report["average"]["all"]["t2i_R@1"] == 75
    assert report["average"]["without_en"]["i2t_R@1"] == 50
    assert "ties" not in report["average"]["all"]
    # ranks 0 0 0 0 and 3 3 0 0 (the others all tie at zero): two items with ranks {0, 3}, variance 2.25 each
    assert report["mean_rank_variance"]["variance"] == {"t2i": 1.125, "i2t": 1.125}
    assert report["mean_rank_variance"]["std"] == {"t2i": 0.75, "i2t": 0.75}


def test_captioned_gallery_leaves_distractors_out() -> None:
    text, own = {"de": one_hot([1, 3])}, {"de": torch.tensor([2, 3])}
    image = torch.eye(4)
    image[2, 1] = 0.5  # the first caption finds image 1 first, image 2 second
    assert evaluate_languages(text, image, own)["results"]["de"]["t2i_R@1"] == 50
    assert evaluate_languages(text, image, own, captioned_only=True)["results"]["de"]["t2i_R@1"] == 100


def test_languages_with_other_captions_have_no_rank_variance() -> None:
    text = {"en": one_hot([0, 1]), "de": one_hot([1])}
    report = evaluate_languages(text, torch.eye(4), {"en": torch.tensor([0, 1]), "de": torch.tensor([1])})
    assert "mean_rank_variance" not in report


def test_results_are_those_of_the_metric() -> None:
    text, image, own = torch.randn(20, 6), torch.randn(9, 6), torch.arange(20) % 9
    for protocol in ("strict", "released"):
        report = evaluate_languages({"ja": text}, image, {"ja": own}, protocol)
        assert report["results"]["ja"] == retrieval_metrics(text, image, own, protocol)
        assert list(report["average"]) == ["all"]


def test_languages_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\['en'\].*\['de'\]"):
        evaluate_languages({"en": torch.ones(1, 2)}, torch.ones(1, 2), {"de": torch.zeros(1, dtype=torch.long)})


def test_average_of_english_alone() -> None:
    assert list(average_languages({"en": {"mean_recall": 3.0, "ties": 1}})) == ["all"]


# --- caption files


def test_plain_gzip_and_tsv_captions(tmp_path: Path) -> None:
    write(tmp_path / "valid.de", "Ein Hund\u2028bellt .", "Zwei Katzen\r")
    (tmp_path / "valid.en.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfA dog .\nTwo cats"))
    write(tmp_path / "valid.tsv", "7\tUn chien", "5\tDeux chats")
    write(tmp_path / "valid.ids", "7.jpg", "5.jpg\tteacher-text-5")
    captions = read_caption_files(
        [f"{key}={tmp_path / name}" for key, name in (("de", "valid.de"), ("en", "valid.en.gz"), ("fr", "valid.tsv"))],
        [str(tmp_path / "valid.ids")],
    )
    assert [each.texts for each in captions] == [
        ["Ein Hund\u2028bellt .", "Zwei Katzen"],
        ["A dog .", "Two cats"],
        ["Un chien", "Deux chats"],
    ]
    assert [each.ids for each in captions] == [["7.jpg", "5.jpg"], ["7.jpg", "5.jpg"], ["7", "5"]]
    described = captions[0].describe()
    assert described["sha256"] == hashlib.sha256((tmp_path / "valid.de").read_bytes()).hexdigest()
    assert (described["captions"], described["images"]) == (2, 2)
    assert "ids_sha256" not in captions[2].describe()


def test_ids_of_one_language(tmp_path: Path) -> None:
    write(tmp_path / "en", "a", "b")
    write(tmp_path / "de", "c")
    write(tmp_path / "en.ids", "1", "2")
    write(tmp_path / "a=b.ids", "3")
    captions = read_caption_files(
        [f"en={tmp_path}/en", f"de={tmp_path}/de"], [f"en={tmp_path}/en.ids", f"{tmp_path}/a=b.ids"]
    )
    assert [each.ids for each in captions] == [["1", "2"], ["3"]]


BAD_CAPTIONS = {
    "is not LANGUAGE=FILE": (["valid.de"], []),
    "give each language once": (["de=two", "de=two"], ["two"]),
    "have no image ids": (["de=two"], []),
    "missing: cannot be read": (["de=missing"], ["two"]),
    "no --captions are in 'fr'": (["de=two"], ["fr=two"]),
    "already given": (["de=two"], ["two", "one"]),
    "has 2 captions, but .*one has 1 image ids": (["de=two"], ["one"]),
    "blank, line 2: is empty": (["de=blank"], ["two"]),
    "empty: is empty": (["de=empty"], ["two"]),
    "latin1, line 1: is not UTF-8 text .byte 3.": (["de=latin1"], ["one"]),
    "bad.tsv, line 2: is not 'image id, tab, caption'": (["de=bad.tsv"], []),
    "has image ids of its own": (["de=good.tsv"], ["de=one"]),
    "every caption file has image ids already": (["de=good.tsv"], ["one"]),
}


@pytest.mark.parametrize("sentence", BAD_CAPTIONS)
def test_bad_caption_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("one"), "1")
    write(Path("two"), "1", "2")
    write(Path("blank"), "a", " ", "c")
    Path("empty").touch()
    Path("latin1").write_bytes(b"caf\xe9\n")
    write(Path("bad.tsv"), "1\ta", "2 b")
    write(Path("good.tsv"), "1\ta")
    with pytest.raises(ValueError, match=sentence):
        read_caption_files(*BAD_CAPTIONS[sentence])


# --- galleries


def test_ids_with_and_without_extension(tmp_path: Path) -> None:
    index = IdIndex(["a/1.jpg", "a/2.PNG", "3", "4.jpg", "4.png"], tmp_path)
    assert [index.find(name) for name in ("a/1.jpg", "a/1", "a/2", "3", "1.jpg", "a/2.png")] == [
        0,
        0,
        1,
        2,
        None,
        None,
    ]
    with pytest.raises(ValueError, match=r"'4' fits several images .4\.jpg, 4\.png"):
        index.find("4")
    with pytest.raises(ValueError, match="'x' more than once"):
        IdIndex(["x", "y", "x"], tmp_path)


def test_a_missing_image_names_id_file_and_line(tmp_path: Path) -> None:
    write(tmp_path / "de", "a", "b", "c")
    ids = write(tmp_path / "ids", "1", "9", "8")
    captions = read_language_captions("de", tmp_path / "de", ids)
    with pytest.raises(ValueError, match=r"ids, line 2: image '9' \(de\) is not in .* \(2 of 3 captions"):
        IdIndex(["1"], tmp_path).rows(captions)
    assert IdIndex(["8", "9", "1"], tmp_path).rows(captions).tolist() == [2, 1, 0]


def test_pictures_of_a_folder_and_of_a_list(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "b/notes.txt"):
        write(tmp_path / "photos" / name, "")
    folder = ImageGallery(tmp_path / "photos")
    assert folder.index.names == ["a.png", "b/2.JPG"]
    assert folder.picture(1) == tmp_path / "photos/b/2.JPG"
    listed = ImageGallery(write(tmp_path / "photos" / "list", "b/2.JPG", "second\ta.png"))
    assert listed.index.names == ["b/2.JPG", "second"]
    assert listed.picture(1) == tmp_path / "photos/a.png"
    assert folder.describe()["list_sha256"] == hashlib.sha256(b"a.png\nb/2.JPG").hexdigest()
    with pytest.raises(ValueError, match="holds no images"):
        ImageGallery(write(tmp_path / "empty" / "x.txt", "").parent)
    with pytest.raises(ValueError, match="line 1: names no image"):
        ImageGallery(write(tmp_path / "list", "a\t", "b"))


def test_chunks_keep_order_and_refuse_lost_rows() -> None:
    def encode(items: list[int], batch_size: int, normalize: bool) -> torch.Tensor:
        assert normalize
        assert len(items) <= 16 * batch_size
        return torch.tensor(items, dtype=torch.bfloat16)[:, None]

    encoded = encode_in_chunks(encode, list(range(100)), 2, "captions")
    assert encoded.dtype == torch.float32
    assert encoded[:, 0].tolist() == list(range(100))
    with pytest.raises(ValueError, match="returned 1 rows for 2 captions"):
        encode_in_chunks(lambda items, **_: torch.ones(1, 1), [1, 2], 4, "captions")


# --- reports


def sample_report() -> dict[str, object]:
    own = torch.arange(4)
    evaluation = evaluate_languages(
        {"en": one_hot([0, 1, 2, 3]), "de": one_hot([1, 0, 2, 3])}, torch.eye(4), {"en": own, "de": own}
    )
    return {
        "name": "test",
        **provenance(["prog", "a b"]),
        "protocol": "strict",
        "gallery": "all",
        **evaluation,
    }


def test_table_by_hand() -> None:
    table = format_table(sample_report()).splitlines()
    assert table[0].split("|")[1:4] == [" language           ", " t2i R@1 ", " t2i R@5 "]
    assert table[1].startswith("| ------------------ | ------: |")
    assert table[3] == (
        "| de                 |    50.0 |   100.0 |    100.0 |    50.0 |   100.0 |    100.0 |        83.3 |"
    )
    assert [row.split("|")[1].strip() for row in table[2:]] == ["en", "de", "average", "average without en"]
    assert len({len(row) for row in table}) == 1


def test_notes_report_ties_and_consistency() -> None:
    notes = format_notes(sample_report())
    assert "strict protocol" in notes
    assert "counted against them: de 4." in notes
    assert "t2i 1.12, i2t 1.12 (standard deviation 0.75, 0.75)" in notes


def test_report_files(tmp_path: Path) -> None:
    paths = write_report(sample_report(), tmp_path / "new" / "run")
    assert [path.name for path in paths] == ["report.json", "report.md"]
    report = json.loads(paths[0].read_text(encoding="utf-8"))
    assert report["results"]["de"]["t2i_R@1"] == 50
    assert report["command"] == "prog 'a b'"
    assert (
        report["versions"]["torch"] == torch.__version__.split("+")[0]
        or report["versions"]["torch"] == torch.__version__
    )
    assert set(report["versions"]) == {"python", "torch", "numpy", "transformers", "fairseq", "mclip_fairseq"}
    assert report["versions"]["numpy"] == np.__version__
    assert "| de " in paths[1].read_text(encoding="utf-8")


# --- pictures


def examples() -> list[Example]:
    colours = [Image.new("RGBA", (30, 10 + 10 * i), colour) for i, colour in enumerate(["red", "blue", "#0000"])]
    return [
        Example("costs $5 and $6 _{x", "en", colours, [0.5, 0.25, 0.1], own=1, rank=1),
        Example("Ein Hund läuft über die Wiese " * 6, "de", colours[:2], [0.5, 0.25], own=None, rank=11),
        Example("كلب يركض على العشب", "ar", colours, [0.5, 0.25, 0.1], own=0, rank=0),
    ]


def test_pictures_are_drawn(tmp_path: Path) -> None:
    draw_recalls(sample_report()["results"], tmp_path / "recall.png", title="a $ b")  # type: ignore[arg-type]
    assert draw_examples(examples(), tmp_path / "examples.png", title="$x") == ""
    for name in ("recall.png", "examples.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 3


def test_an_older_picture_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = tmp_path / "recall.png"
    picture.write_bytes(b"older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="too large"):
            draw_recalls(sample_report()["results"], picture)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["recall.png"]
    assert picture.read_bytes() == b"older"
    with pytest.raises(UserError, match=r"a\.xyz: pictures of this kind cannot be written; give a name that ends in"):
        draw_recalls(sample_report()["results"], tmp_path / "a.xyz")  # type: ignore[arg-type]


def test_the_own_image_is_framed_in_green(tmp_path: Path) -> None:
    green = (26, 152, 80)

    def count(example: Example) -> int:
        draw_examples([example], tmp_path / "one.png")
        with Image.open(tmp_path / "one.png") as picture:
            return int((np.asarray(picture.convert("RGB")) == green).all(-1).sum())

    with_own, without_own = examples()[0], examples()[1]
    assert count(with_own) > 500
    assert count(without_own) == 0


def test_missing_glyphs_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = "\U000f0000"  # private use
    example = Example(nowhere, "xx", [Image.new("RGB", (4, 4))], [1.0], own=0, rank=0)
    assert draw_examples([example], tmp_path / "x.png") == nowhere
    assert "no installed font has 1 of the characters" in caplog.text


def test_unreadable_pictures_and_fonts_are_refused(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.png", "no picture")
    with pytest.raises(ValueError, match=r"broken\.png: is not an image"):
        draw_examples([Example("a", "en", [broken], [1.0], own=0, rank=0)], tmp_path / "x.png")
    with pytest.raises(ValueError, match="is not a font file"):
        add_fonts([broken])


def test_font_families_cover_scripts() -> None:
    assert families_for(["Hund", "кот", "قطة"]) == (["DejaVu Sans"], "")
    families, missing = families_for(["a\u200d \ufe0f\n\U000f0001"], preferred=["STIXGeneral"])
    assert families == ["STIXGeneral"]
    assert missing == "\U000f0001"


def test_queries_go_round_languages_and_spread_over_files() -> None:
    assert pick_queries({"en": 100, "de": 50, "fr": 10}, 5) == [
        ("en", 10),
        ("de", 15),
        ("fr", 5),
        ("en", 70),
        ("de", 45),
    ]
    assert pick_queries({"en": 1}, 3) == [("en", 0)] * 3


def test_wrapping() -> None:
    assert wrap("two brown dogs run", 10, 5) == "two brown\ndogs run"
    assert wrap("一只狗在草地上跑", 8, 5) == "一只狗在\n草地上跑"
    assert wrap("Donaudampfschifffahrtsgesellschaft", 20, 5) == "Donaudampfschifffahr\ntsgesellschaft"
    assert wrap("a b c d e f", 1, 3) == "a\nb\nc …"
