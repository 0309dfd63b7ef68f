"""A tiny but real corpus: short captions in three languages, tokenised, with image and teacher text features."""

import contextlib
import importlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

LANGS = ("en", "de", "fr")
NOUNS = {
    "en": ["dog", "cat", "house", "tree", "car", "bird", "ball", "boat"],
    "de": ["Hund", "Katze", "Haus", "Baum", "Auto", "Vogel", "Ball", "Boot"],
    "fr": ["chien", "chat", "maison", "arbre", "voiture", "oiseau", "balle", "bateau"],
}
COLOURS = {
    "en": ["red", "blue", "green", "black", "white"],
    "de": ["rot", "blau", "grün", "schwarz", "weiß"],
    "fr": ["rouge", "bleu", "vert", "noir", "blanc"],
}
FRAMES = {
    "en": ["a {n} that is {c}", "the {c} {n} is small", "look at this {c} {n} near the sea"],
    "de": ["ein {n} das ist {c}", "{n} in {c} ist klein", "sieh {n} in {c} dort am Meer"],
    "fr": ["un {n} qui est {c}", "le {n} {c} est petit", "regarde {n} en {c} devant la mer"],
}
DIM = 12
TEACHER: dict[str, Any] = {"model": "tiny teacher", "normalized": False, "preprocessing": "none"}


def sentences(lang: str) -> list[str]:
    """All 120 captions of a language, aligned over languages."""
    return [f.format(n=n, c=c) for f in FRAMES[lang] for n in NOUNS[lang] for c in COLOURS[lang]]


def run(program: str, *arguments: object) -> None:
    """Run a program of preprocess/ in this process, and show what it said if it fails."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = importlib.import_module(program).main([str(argument) for argument in arguments])
    assert status == 0, said.getvalue()


def binarise(folder: Path, output: str, *what: str) -> Path:
    """Ids of the tokenizer's dictionary, as fairseq-preprocess writes them."""
    dictionary = folder / "tokenizer" / "dict.txt"
    run("binarise", "--pieces", folder / "pieces", "--dictionary", dictionary, "--output", folder / output, *what)
    return folder / output


def write(path: Path, lines: list[str]) -> None:
    """One item per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_text(folder: Path) -> Path:
    """Tokenizer and encoded text: `tokenizer/`, `pieces/{train,valid}.{lang}`."""
    for lang in LANGS:
        lines = sentences(lang)
        write(folder / "raw" / f"train.{lang}", lines[:104])
        write(folder / "raw" / f"valid.{lang}", lines[104:])
    files = sorted((folder / "raw").iterdir())
    train = [file for file in files if file.name.startswith("train")]
    run("train_tokenizer", "--vocabulary", 150, "--output", folder / "tokenizer", *train)
    model = folder / "tokenizer" / "sentencepiece.bpe.model"
    run("encode", "--model", model, "--output", folder / "pieces", *files)
    return folder


def make_parallel(folder: Path) -> Path:
    """`mte/`: en-de and en-fr for the task mte. Needs `make_text`."""
    return binarise(folder, "mte", "--pairs", "en-de", "en-fr")


def teacher_features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and English text features, (40, DIM) and (120, DIM): an image per noun and colour, three captions each."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(40, DIM)).astype(np.float32)
    texts = np.tile(images, (3, 1)) + 0.3 * rng.normal(size=(120, DIM)).astype(np.float32)
    return images, texts


def make_captions(folder: Path) -> Path:
    """`captions/` for the task trikd and `features/{image,text}`. Needs `make_text`."""
    from mclip_fairseq.storage.features import write_features

    binarise(folder, "captions", "--captions", *LANGS)
    for lang in LANGS:
        ids = [f"img{i % 40}\ttxt{i}" for i in range(120)]
        write(folder / "captions" / f"train.{lang}.ids", ids[:104])
        write(folder / "captions" / f"valid.{lang}.ids", ids[104:])
    images, texts = teacher_features()
    write_images(folder, images)
    names = [f"txt{i}" for i in range(120)]
    write_features(folder / "features" / "text", names, texts, modality="text", **TEACHER)
    return folder / "captions"


def write_images(folder: Path, images: np.ndarray) -> None:
    """`features/image`, of 40 images."""
    from mclip_fairseq.storage.features import write_features

    names = [f"img{i}" for i in range(40)]
    write_features(folder / "features" / "image", names, images, modality="image", **TEACHER)


def mte_options(corpus: Path, folder: Path) -> list[str]:
    """What every fairseq-train command line of the task `mte` on the tiny corpus has in common."""
    return [
        *(str(corpus / "mte"), "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de,en-fr"),
        *("--arch", "mte_tiny", "--criterion", "mte", "--optimizer", "fused_adamw", "--lr", "0.003"),
        *("--save-dir", str(folder), "--no-progress-bar", "--num-workers", "0"),
    ]


def make_photos(folder: Path, captions: Path) -> Path:
    """Images for the captions of `make_captions`, a teacher, and the teacher's features of the images."""
    from PIL import Image

    from mclip_fairseq.cli.features import main as features
    from tests.tiny_models import tiny_clip_directory

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(40):
        colours = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((40, 40)).save(folder / "images" / f"img{number}.png")
    shutil.copytree(captions, folder / "captions")
    for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
        write(folder / "captions" / f"{split}.en.ids", [f"img{number % 40}.png" for number in range(start, stop)])
    teacher = tiny_clip_directory(folder / "teacher")
    command = ["--model", str(teacher), "--images", str(folder / "images"), "--output", str(folder / "features")]
    assert features([*command, "--store-dtype", "float32", "--device", "cpu"]) == 0
    return folder


def pixel_options(corpus: Path, tokenizer: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line on the corpus with photos, less where the images come from."""
    values = [
        *(corpus / "captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *(
            "--freeze-text",
            "none",
            "--text-tokenizer",
            tokenizer,
            "--teacher",
            corpus / "teacher",
            "--num-workers",
            "0",
        ),
        *("--text-text-weight", "0", "--positives", "image", "--optimizer", "sgd", "--lr", "0.1", "--dropout", "0"),
        *("--batch-size", "26", "--max-update", "4", "--disable-validation", "--no-progress-bar", "--save-dir", folder),
    ]
    return [str(value) for value in [*values, *more]]
