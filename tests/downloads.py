"""Small files in exactly the formats of public datasets, and helpers to run the scripts that read them."""

import contextlib
import gzip
import importlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FREE = ["--expect-counts", "no"]
COCO_TRAIN = "COCO_train2014_000000000009.jpg"
COCO_VAL = "COCO_val2014_000000000042.jpg"


@dataclass(frozen=True)
class Done:
    """The result of a script."""

    status: int
    out: str
    err: str


def run(script: str, *arguments: object) -> Done:
    """A script of `preprocess/` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = importlib.import_module(script).main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(str(stop.code))
    return Done(status, out.getvalue(), err.getvalue())


def works(script: str, *arguments: object) -> str:
    """What a script prints; it must succeed."""
    done = run(script, *arguments)
    assert done.status == 0, done.err
    return done.out


def refuses(script: str, *arguments: object) -> str:
    """The error of a script that must exit with status 2."""
    done = run(script, *arguments)
    assert done.status == 2, done.out
    assert "Traceback" not in done.err
    return done.err


def lines(path: Path) -> list[str]:
    """Lines of a file that was written, split at line feeds only."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def manifest(folder: Path, name: str = "manifest.json") -> Any:
    """The manifest of an output."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, gzipped if its name says so, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_json(path: Path, value: object) -> Path:
    """A JSON file without escapes, as its authors write it."""
    return write(path, json.dumps(value, ensure_ascii=False))


def write_json_lines(path: Path, records: Iterable[object]) -> Path:
    """One JSON object per line."""
    return write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def touch(folder: Path, names: Iterable[str]) -> Path:
    """A folder with these files in it."""
    for name in names:
        write(folder / name, b"\xff\xd8")
    return folder


def karpathy_image(number: int, split: str, captions: list[str], folder: str = "val2014") -> dict[str, object]:
    """An image of `dataset_coco.json`."""
    return {
        "filepath": folder,
        "sentids": [10 * number + index for index in range(len(captions))],
        "filename": f"COCO_{folder}_{number:012d}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 10 * number + index}
            for index, text in enumerate(captions)
        ],
        "cocoid": number,
    }


def karpathy(path: Path, images: list[dict[str, object]]) -> Path:
    """`dataset_coco.json`."""
    return write_json(path, {"images": images, "dataset": "coco"})


def annotations(path: Path, captions: Mapping[int, list[str]], first: int = 1) -> Path:
    """A file in COCO's own format."""
    items = [(image, text) for image, texts in captions.items() for text in texts]
    return write_json(
        path,
        {
            "info": {},
            "licenses": [],
            "images": [{"id": image, "file_name": f"COCO_val2014_{image:012d}.jpg"} for image in captions],
            "annotations": [
                {"image_id": image, "id": first + number, "caption": text} for number, (image, text) in enumerate(items)
            ],
        },
    )


def webdataset(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def tokenizer(folder: Path) -> Path:
    """A folder with the two files of XLM-R's release that prepare text."""
    import sentencepiece

    folder.mkdir(parents=True)
    prefix = folder / "sentencepiece.bpe"
    texts = iter(["a dog runs and a cat sleeps", "ein Hund läuft und eine Katze schläft", "犬がいる 一只狗"] * 9)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    pieces = [line.split("\t")[0] for line in lines(folder / "sentencepiece.bpe.vocab")[3:]]
    write(folder / "dict.txt", "".join(f"{piece} 1\n" for piece in pieces))
    return folder


def coco_cn(folder: Path, captions: str) -> Path:
    """COCO-CN's folder."""
    write(folder / "coco-cn_train.txt", "COCO_train2014_000000000009\n")
    write(folder / "coco-cn_val.txt", "COCO_val2014_000000000044\r\n")
    write(folder / "coco-cn_test.txt", "COCO_val2014_000000000042\n\n")
    write(folder / "imageid.human-written-caption.txt", captions)
    return folder


def sample(key: str, caption: str, image: bytes = b"\xff\xd8") -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes it."""
    record = {"url": "http://x", "caption": caption, "key": key, "status": "success", "error_message": None}
    members = [(f"{key}.jpg", image)] if image else []
    return [*members, (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", caption.encode())]


def coco_split_file(folder: Path) -> Path:
    """`dataset_coco.json` of seven images, with captions as odd as people type them."""
    images = [
        karpathy_image(9, "train", ["A dog.\n", "Two\tdogs\u2028run "], "train2014"),
        karpathy_image(42, "test", ["a cat", "Cafe\u0301 ＣＡＦÉ！"]),
        karpathy_image(43, "restval", ["a car"]),
        karpathy_image(44, "val", ["a hat", "<b>a hat</b>"]),
        *[karpathy_image(number, "test", ["a bus"]) for number in (45, 46, 47)],
    ]
    return karpathy(folder / "dataset_coco.json", images)


def multi30k_data(folder: Path) -> Path:
    """The folder `data` of Multi30K's repository."""
    data = folder / "data"
    texts = {"en": "A dog.\nA cat.\n", "de": "Ein Hund.\r\nEine Katze.\r\n", "fr": "Un chien.\nUn\u00a0chat.\n"}
    for split in ("train", "val", "test_2016_flickr", "test_2017_mscoco"):
        for lang, text in texts.items():
            write(data / "task1" / "raw" / f"{split}.{lang}.gz", text)
        names = "1000092795.jpg\n10002456.jpg\n"
        if split == "test_2017_mscoco":
            names = f"{COCO_TRAIN}#367178\n{COCO_VAL}#657409\n"
        write(data / "task1" / "image_splits" / f"{split}.txt", names)
    for lang in ("en", "de"):
        for number in range(1, 6):
            write(data / "task2" / "raw" / f"test_2016.{number}.{lang}.gz", f"{lang} {number} a\n{lang} {number} b\n")
    write(data / "task2" / "image_splits" / "test_2016_images.txt", "36979.jpg\n65567.jpg\n")
    return data


def babel(folder: Path, labels: object) -> list[object]:
    """The options for Babel-ImageNet's data."""
    prompts = {"DE": ["ein Foto von\n{}.", "{}"], "ZH": ["一张{}的照片。"]}
    return [
        *("--labels", write_json(folder / "babel_imagenet.json", labels)),
        *("--prompts", write_json(folder / "nllb_dist13b_prompts.json", prompts)),
    ]


def sts_files(folder: Path) -> Path:
    """STS-B, its translations and STS2017, in the four formats of their authors."""
    for part in ("train", "dev", "test"):
        row = 'main-captions\tMSRvid\t2012test\t0001\t{}\tA "plane" is.\tAn air plane\tlicence\r\n'
        write(folder / "stsb" / f"sts-{part}.csv", row.format("5.000") + row.format("0.25"))
    write(folder / "stsb-multi" / "data" / "stsb-en-test.csv", "a,b,1\n")
    write(folder / "stsb-multi" / "data" / "stsb-de-test.csv", '"Ein ""Flug"", ja","Ein\nFlugzeug",5.0\na,b,1\n')
    write(folder / "stsb-multi" / "data" / "stsb-zh-dev.csv", "飞机，\u3000在,一架,2.5\n")
    write(folder / "sts2017" / "STS.en-de.txt", "A plane\tEin Flug\t3.8\n")
    write(folder / "tracks" / "STS2017.eval.v1.1" / "STS.input.track5.en-en.txt", "A plane\tA car\n")
    write(folder / "tracks" / "STS2017.gs" / "STS.gs.track5.en-en.txt", "0.2\n")
    return folder
