"""A user's own data in every format: the same captions come out of each, and what is unclear is refused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mclip_fairseq.cli import features
from mclip_fairseq.encoding.captions import read_language_captions
from tests.downloads import lines, manifest, refuses, touch, webdataset, works, write, write_json_lines
from tests.tiny_models import tiny_clip_directory

STORED = Path(__file__).resolve().parents[1] / "data" / "own"
NUMBERS = range(10)
EN = {number: f"photo {number}" for number in NUMBERS}
DE = {number: f"Foto {number}" for number in NUMBERS}
Pairs = set[tuple[str, str, str]]


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten files, in two folders, with a space in each name."""
    return touch(tmp_path / "photos", [f"{'a' if number % 2 else 'b'}/my {number}.jpg" for number in NUMBERS])


def image(number: int) -> str:
    return f"{'a' if number % 2 else 'b'}/my {number}.jpg"


def pairs(folder: Path) -> Pairs:
    """(language, image, caption) over all splits of an output, from the files that evaluation reads."""
    found = set()
    for ids in sorted(folder.glob("*.ids")):
        captions = read_language_captions(ids.suffixes[0][1:], ids.with_suffix(""), ids)
        found |= {(captions.language, *pair) for pair in zip(captions.ids, captions.texts, strict=True)}
    return found


EXPECTED: Pairs = {("en", image(n), EN[n]) for n in NUMBERS} | {("de", image(n), DE[n]) for n in NUMBERS}


def wide_csv(folder: Path) -> list[object]:
    rows = [f'{image(n)};"{EN[n]}";{DE[n]}\r\n' for n in NUMBERS]
    return [write(folder / "t.csv", "\ufefffile_name;caption_en;Caption (DE)\r\n" + "".join(rows))]


def regions(folder: Path) -> list[object]:
    """A column of numbers whose name is also a language's code is not a caption."""
    rows = [f"{n},{image(n)},{EN[n]},{DE[n]}\n" for n in NUMBERS]
    return [write(folder / "t.csv", "id,image,en_US,de\n" + "".join(rows))]


def long_tsv(folder: Path) -> list[object]:
    rows = [f"{code}\t{image(n)}\t{texts[n]}\n" for n in NUMBERS for code, texts in (("en-US", EN), ("DE", DE))]
    return [write(folder / "t.tsv.gz", "lang\timage\ttext\n" + "".join(rows))]


def file_per_language(folder: Path) -> list[object]:
    tables = [("x.tsv", EN), ("captions_de.tsv", DE)]
    files = [
        write(folder / name, "image\tcaption\n" + "".join(f"{image(n)}\t{texts[n]}\n" for n in NUMBERS))
        for name, texts in tables
    ]
    return [f"en={files[0]}", files[1]]


def without_header(folder: Path) -> list[object]:
    path = write(folder / "t.tsv", "".join(f"7\t{image(n)}\t{EN[n]}\t{DE[n]}\n" for n in NUMBERS))
    return [path, "--columns", "n", "image", "x", "y", "--caption-column", "en=x", "de=y"]


def json_lists(folder: Path) -> list[object]:
    """Paths without their endings and with the name of the folder, lists, an object of languages."""
    records = [{"path": f"photos/{image(n)[:-4]}", "text": {"en": [EN[n]], "de": DE[n], "fr": None}} for n in NUMBERS]
    return [write_json_lines(folder / "t.jsonl", records)]


def parquet(folder: Path) -> list[object]:
    table = pyarrow.table(
        {
            "embedding": [[1.0]] * 10,
            "img": [image(n) for n in NUMBERS],
            "en": list(EN.values()),
            "de": list(DE.values()),
        }
    )
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return [folder / "t.parquet"]


@pytest.mark.parametrize(
    "source",
    [wide_csv, regions, long_tsv, file_per_language, without_header, json_lists, parquet],
    ids=lambda f: f.__name__,
)
def test_tables_of_every_format(source: Callable[[Path], list[object]], tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    said = works("own", *source(tmp_path), "--images", photos, "--output", out)
    assert pairs(out) == EXPECTED
    assert sorted(lines(out / "images.tsv")) == sorted(f"{image(n)}\t{image(n)}" for n in NUMBERS)
    assert {"train.en", "valid.en", "test.en", "train.de", "valid.de", "test.de"} <= {p.name for p in out.iterdir()}
    assert "10% to valid, 10% to test, chosen by --seed 1" in said
    assert "columns: images: " in said
    assert manifest(out)["sources"]
    # English captions of train and valid are numbered for the teacher, and are in its list.
    numbered = [line.split("\t") for line in lines(out / "texts.en.tsv")]
    train = dict(
        zip((line.split("\t")[1] for line in lines(out / "train.en.ids")), lines(out / "train.en"), strict=True)
    )
    assert {key: text for key, text in numbered if key.startswith("train/")} == train


def test_a_folder_with_caption_files(tmp_path: Path, photos: Path) -> None:
    """Several lines, blank lines, a file named after the whole image, a text that belongs to no image."""
    for n in NUMBERS:
        name = image(n) if n == 3 else image(n)[:-4]
        write(photos / f"{name}.txt", f"{EN[n]}\n\n")
        write(photos / f"{name}.de.txt", f"{DE[n]}\nnoch ein Foto {n}\n")
    write(photos / "readme.txt", "mine\n")
    out = tmp_path / "out"
    said = works("own", photos, "--language", "en", "--output", out)
    assert pairs(out) == EXPECTED | {("de", image(n), f"noch ein Foto {n}") for n in NUMBERS}
    assert "left out, text file without an image: 1" in said
    assert manifest(out)["sources"][0]["count"] == 21
    (photos / "a" / "my 1.txt").unlink()
    (photos / "a" / "my 1.de.txt").unlink()
    assert f"{photos}/a/my 1.jpg: the caption of a/my 1.jpg is empty" in refuses(
        "own", photos, "--language", "en", "--output", out
    )
    works("own", photos, "--language", "en", "--output", out, "--skip-budget", 1)
    assert len(lines(out / "images.tsv")) == 9
    touch(photos, ["a/my 1.png"])
    assert "has the name of a/my 1.jpg less the ending" in refuses("own", photos, "--output", out)


@pytest.mark.parametrize("name", ["saved", "hub", "saved/train"])
def test_directories_of_hugging_face(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    works("own", STORED / name, "--output", out, *(["--ratio", "valid=0"] if name == "saved/train" else []))
    assert lines(out / "train.en") == ["a red square", "a blue square", "a red square"]
    assert lines(out / "train.de")[2] == "noch ein rotes Quadrat"
    ids = lines(out / "train.de.ids")
    assert ids[0] == ids[2] != ids[1]  # one picture, one image
    assert (out / "images" / ids[0]).read_bytes().startswith(b"\x89PNG")
    assert (out / "test.de").exists() == (name != "saved/train")
    works("own", STORED / name, "--output", out, "--ratio", "valid=0.5")  # again, and with a part of train
    assert sorted(lines(out / "train.de") + lines(out / "valid.de")) == [
        "ein blaues Quadrat",
        "ein rotes Quadrat",
        "noch ein rotes Quadrat",
    ]


def test_images_beside_their_table_in_a_folder_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        touch(tmp_path / "set" / split, ["1.jpg"])
        write(tmp_path / "set" / split / "metadata.csv", f"file_name,text\n1.jpg,{split}\n")
    works("own", tmp_path / "set", "--language", "fr", "--output", tmp_path / "out")
    assert pairs(tmp_path / "out") == {("fr", "train/1.jpg", "train"), ("fr", "validation/1.jpg", "validation")}
    assert lines(tmp_path / "out" / "valid.fr") == ["validation"]


def samples(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    """Members of a tar with texts in two languages and a field."""
    members = []
    for n in numbers:
        members += [
            (f"{n}.png", png("red") + bytes([n])),
            (f"{n}.json", f'{{"split": "{"dev" if n else "train"}"}}'.encode()),
        ]
        members += [(f"{n}.txt", EN[n].encode()), (f"{n}.de.txt", DE[n].encode())]
    return members


def test_tars(tmp_path: Path) -> None:
    webdataset(tmp_path / "shards" / "00.tar", samples([0, 1]))
    webdataset(tmp_path / "shards" / "01.tar", samples([2]))
    out = tmp_path / "out"
    works("own", tmp_path / "shards", "--language", "en", "--output", out)
    assert lines(out / "valid.de") == ["Foto 1", "Foto 2"]
    assert lines(out / "valid.en.ids") == ["00/1.png\tvalid/0", "01/2.png\tvalid/1"]
    assert (out / "images" / "01" / "2.png").read_bytes() == png("red") + bytes([2])
    webdataset(tmp_path / "shards" / "01.tar", samples([2, 1, 2]))
    assert "sample 2: occurs twice" in refuses("own", tmp_path / "shards", "--language", "en", "--output", out)
    webdataset(tmp_path / "shards" / "01.tar", [*samples([3])[1:]])
    command: list[object] = [tmp_path / "shards", "--language", "en", "--output", tmp_path / "less"]
    assert "01.tar, sample 3: has no image (--skip-budget 0 is used up)" in refuses("own", *command)
    works("own", *command, "--skip-budget", 2)


def test_images_stay_in_their_tars(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="needs the extra scale")
    from mclip_fairseq.storage.tar_index import TarImages

    webdataset(tmp_path / "shards" / "00.tar", samples([0, 1]))
    webdataset(tmp_path / "shards" / "01.tar", samples([2]))
    out = tmp_path / "out"
    works("own", tmp_path / "shards", "--language", "en", "--output", out, "--leave-in-tars")
    assert not (out / "images").exists()
    images = TarImages(f"{tmp_path}/shards/*.tar")
    ids = [line.split("\t")[0] for split in ("train", "valid") for line in lines(out / f"{split}.en.ids")]
    assert [images.open(name).read()[-1] for name in ids] == [0, 1, 2]
    write(tmp_path / "table.csv", "image,caption\nx.png,a photo\n")
    command = (tmp_path / "table.csv", "--language", "en", "--output", out, "--leave-in-tars")
    assert "--leave-in-tars is for webdataset tars only" in refuses("own", *command)


def test_tars_of_two_splits_with_the_same_names(tmp_path: Path) -> None:
    tars = {}
    for n, split in enumerate(("train", "val")):
        tars[split] = webdataset(tmp_path / "all" / split / "00.tar", samples([n]))
    options = ["--language", "en", "--output"]
    works("own", "--train", tars["train"], "--valid", tars["val"], *options, tmp_path / "named")
    works("own", tmp_path / "all", *options, tmp_path / "found")
    assert lines(tmp_path / "named" / "images.tsv")[1] == "valid/00/1.png\tvalid/00/1.png"
    assert lines(tmp_path / "found" / "valid.de") == ["Foto 1"]
    assert "would have the names of those of" in refuses("own", *tars.values(), *options, tmp_path / "both")


def test_splits_by_file_and_by_column(tmp_path: Path, photos: Path) -> None:
    def table(name: str, numbers: Iterable[int], split: str = "") -> Path:
        rows = [f"{image(n)},{EN[n]}" + (f",{split}" if split else "") + "\n" for n in numbers]
        return write(tmp_path / name, f"image,caption{',split' if split else ''}\n" + "".join(rows))

    files = [table(f"{n}.csv", [n]) for n in range(3)]
    options = ["--images", photos, "--language", "en", "--output", tmp_path / "out"]
    works("own", "--train", files[0], "--valid", files[1], "--test", files[2], *options, "--name", "mine")
    for number, split in enumerate(("train", "valid", "test")):
        assert lines(tmp_path / "out" / f"{split}.en") == [EN[number]]
    assert manifest(tmp_path / "out")["divided"]["shares"] == {}
    column = table("s.csv", range(1, 6), "Validation")
    works("own", column, files[0], *options[:-1], tmp_path / "column")
    assert len(lines(tmp_path / "column" / "valid.en")) == 5
    # Photo 0 is in both: what is tested would have been trained on.
    said = refuses("own", "--train", files[0], "--test", table("again.csv", [4, 0]), *options, "--name", "mine")
    assert f"again.csv, line 3: the image {image(0)} is in test, but also in train" in said
    assert "would overwrite; give every set its own directory" in refuses("own", *files, *options)


def test_ratios_keep_images_whole_and_depend_on_the_seed_only(tmp_path: Path, photos: Path) -> None:
    rows = [f"{image(n)},{code},{texts[n]}\n" for n in NUMBERS for code, texts in (("en", EN), ("de", DE))]
    table = write(tmp_path / "t.csv", "image,language,caption\n" + "".join(rows))
    turned = write(tmp_path / "u.csv", "image,language,caption\n" + "".join(reversed(rows)))

    def tested(source: Path, *options: object) -> set[str]:
        out = tmp_path / f"{source.stem}{len(list(tmp_path.iterdir()))}"
        works("own", source, "--images", photos, "--output", out, "--ratio", "test=0.3", *options)
        ids = {lang: {line.split("\t")[0] for line in lines(out / f"test.{lang}.ids")} for lang in ("en", "de")}
        assert ids["en"] == ids["de"]
        assert not (out / "valid.en").exists()
        assert not ids["en"] & {line.split("\t")[0] for line in lines(out / "train.en.ids")}
        return ids["en"]

    first = tested(table)
    assert len(first) == 3
    assert tested(turned) == first
    assert any(tested(table, "--seed", seed) != first for seed in (2, 3, 4))


def test_a_blank_cell_of_a_language_is_counted_and_a_blank_row_refused(tmp_path: Path, photos: Path) -> None:
    head = "image,en,de\n"
    table = write(tmp_path / "t.csv", head + f"{image(0)},one,\n{image(1)},two,zwei\n{image(2)},three,drei\n")
    options = ["--images", photos, "--output", tmp_path / "out", "--ratio", "test=0"]
    assert f"left out, no caption in de: 1; first {table}, line 2" in works("own", table, *options)
    assert lines(tmp_path / "out" / "train.de") == ["zwei", "drei"]
    write(table, head + f"{image(0)},one,eins\n{image(1)},,\u200b\n")
    assert "line 3: the caption of a/my 1.jpg is empty (--skip-budget 0 is used up)" in refuses("own", table, *options)
    works("own", table, *options, "--skip-budget", 2)


GOOD = "image,caption\na/my 1.jpg,one\nb/my 2.jpg,two\na/my 3.jpg,three\n"


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", GOOD, [], "t.csv, line 2: nothing says the language of the caption; give --language"),
        ("t.csv", GOOD, ["--language", "German"], "--language: the language 'German' is not a code; write en"),
        ("t.csv", GOOD, ["--caption-column", "en=x"], "t.csv, line 2: has no column 'x'; it has image, caption"),
        ("t.csv", "a,b\n1,2\n", [], "line 2: no column has a name that tells it holds the image; give --image-column"),
        ("t.csv", "image,b\n1,2\n", [], "holds the captions; give --caption-column with one of image, b"),
        ("t.csv", "image,image\n1,2\n", [], "line 1: two columns have the name 'image'"),
        ("t.csv", "", [], "t.csv: is empty"),
        ("t.csv", "image,caption\n1,2,3\n", [], "line 2: has 3 columns; 2 are expected"),
        ("t.tsv", "image\tcaption\n1\n", [], "line 2: has 1 columns; 2 are expected"),
        ("t.tsv", 'image\tcaption\n1\t"a ""b"""\n', [], "is quoted, which a .tsv is not; give --format csv"),
        ("t.csv", "image,en\nnone.jpg,x\n", [], "line 2: the image none.jpg is missing: there is no none.jpg below"),
        ("t.csv", "image,en\na/MY 1.jpg,x\n", [], "'my 1.jpg', which differs only in case or Unicode form; rename it"),
        ("t.csv", "image,en\n../x.jpg,x\n", [], "the image ../x.jpg is not below"),
        ("t.csv", "image,en\nhttp://x/1.jpg,x\n", [], "is not a file; download the images first"),
        ("t.csv", "image,en\n,x\n", [], "line 2: has no image (--skip-budget 0 is used up)"),
        ("t.csv", "image,en,split\na/my 1.jpg,x,\n", [], "line 2: has no split; fill the column split"),
        ("t.jsonl", '{"image": "a/my 1", "en": 3}\n', [], "line 1: the caption is '3', not a text"),
        ("t.jsonl", '{"image": "a/my 1", "en": "x"}\n{"file": "b/my 2", "en": "y"}\n', [],
         "line 2: has no column 'image'"),
        ("t.jsonl", '{"image": "a/my 1", "text": "x", "title": "t"}\n{"image": "b/my 2", "title": "y"}\n',
         ["--language", "en"], "line 2: has no caption, unlike the records before it; add text"),
        ("t.jsonl", '[{"image": "a/my 1"}]\n', [], "line 1: is not a JSON object"),
        ("t.parquet", "PAR1", [], "t.parquet: is not a readable parquet file"),
        ("t.xyz", "x", [], "t.xyz: its name does not tell its format"),
        ("t.csv", GOOD, ["--language", "en", "--ratio", "valid=0.5", "test=0.5"], "leaves no image to train on"),
        ("t.csv", GOOD, ["--language", "en", "--ratio", "valid=x"], "--ratio valid=x: write it as SPLIT=SHARE"),
        ("t.csv", "image,en\na/my 1.jpg,x\n", [], "too few images (1) for --ratio valid=0.1 test=0.1; add images, or"),
        ("t.csv", "image,en,split\na/my 1.jpg,x,val\nb/my 2.jpg,x,train\n", ["--ratio", "valid=0.5"],
         "the data have images of valid already"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(
    name: str, text: str, options: list[str], message: str, tmp_path: Path, photos: Path
) -> None:
    said = refuses("own", write(tmp_path / name, text), "--images", photos, "--output", tmp_path / "out", *options)
    assert message in said
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train" / "state.json").unlink(), "state.json: not found; save the dataset again"),
        (lambda folder: write(folder / "dataset_dict.json", '{"splits": ["../x"]}'), "is not a list of file names"),
        (lambda folder: write(folder / "train" / "state.json", '{"_data_files": [{"filename": "/x"}]}'),
         "names no data files"),
        (lambda folder: write(next((folder / "train").glob("*.arrow")), b"\0" * 64), "is not a readable arrow file"),
    ],
)  # fmt: skip
def test_damaged_datasets_are_refused(change: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(STORED / "saved", tmp_path / "saved"))
    change(folder)
    assert message in refuses("own", folder, "--output", tmp_path / "out")


def test_features_are_made_from_what_is_written(tmp_path: Path) -> None:
    """`mclip-features` reads the list of images and the English captions."""
    teacher, out = tiny_clip_directory(tmp_path / "teacher"), tmp_path / "out"
    works("own", STORED / "hub", "--output", out)
    for what, source in (("--images", "images.tsv"), ("--captions", "texts.en.tsv")):
        root = ["--root", str(out / "images")] if what == "--images" else []
        command = ["--model", str(teacher), what, str(out / source), *root, "--output", str(tmp_path / what[2:])]
        assert features.main([*command, "--device", "cpu", "--workers", "0"]) == 0
    assert manifest(tmp_path / "images")["count"] == 3
    assert manifest(tmp_path / "captions")["count"] == 3
