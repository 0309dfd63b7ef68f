"""A tiny but real corpus: short captions in three languages, tokenised, with image and teacher text features."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
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


def sentences(lang: str) -> list[str]:
    """All 120 captions of a language, aligned over languages."""
    return [f.format(n=n, c=c) for f in FRAMES[lang] for n in NOUNS[lang] for c in COLOURS[lang]]


def run(*command: object) -> None:
    """Run a command and show its output if it fails."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def preprocess(*args: object) -> None:
    """fairseq-preprocess."""
    run(sys.executable, "-m", "fairseq_cli.preprocess", *args)


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
    run(
        sys.executable,
        "preprocess/train_tokenizer.py",
        "--vocabulary",
        150,
        "--output",
        folder / "tokenizer",
        *[f for f in files if f.name.startswith("train")],
    )
    model = folder / "tokenizer" / "sentencepiece.bpe.model"
    run(sys.executable, "preprocess/encode.py", "--model", model, "--output", folder / "pieces", *files)
    return folder


def make_parallel(folder: Path) -> Path:
    """`mte/`: en-de and en-fr for the task mte. Needs `make_text`."""
    for lang in LANGS[1:]:
        preprocess(
            *("-s", "en", "-t", lang, "--joined-dictionary", "--srcdict", folder / "tokenizer" / "dict.txt"),
            *("--trainpref", folder / "pieces" / "train", "--validpref", folder / "pieces" / "valid"),
            *("--destdir", folder / "mte"),
        )
    return folder / "mte"


def teacher_features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and English text features, (40, DIM) and (120, DIM): an image per noun and colour, three captions each."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(40, DIM)).astype(np.float32)
    texts = np.tile(images, (3, 1)) + 0.3 * rng.normal(size=(120, DIM)).astype(np.float32)
    return images, texts


def make_captions(folder: Path) -> Path:
    """`captions/` for the task trikd and `features/{image,text}`. Needs `make_text`."""
    from mclip_fairseq.data.features import write_features

    for lang in LANGS:
        preprocess(
            *("--only-source", "-s", lang, "--srcdict", folder / "tokenizer" / "dict.txt"),
            *("--trainpref", folder / "pieces" / "train", "--validpref", folder / "pieces" / "valid"),
            *("--destdir", folder / "captions"),
        )
        ids = [f"img{i % 40}\ttxt{i}" for i in range(120)]
        write(folder / "captions" / f"train.{lang}.ids", ids[:104])
        write(folder / "captions" / f"valid.{lang}.ids", ids[104:])
    images, texts = teacher_features()
    common: dict[str, Any] = {"model": "tiny teacher", "normalized": False, "preprocessing": "none"}
    write_features(folder / "features" / "image", [f"img{i}" for i in range(40)], images, modality="image", **common)
    write_features(folder / "features" / "text", [f"txt{i}" for i in range(120)], texts, modality="text", **common)
    return folder / "captions"


def mte_options(corpus: Path, folder: Path) -> list[str]:
    """What every fairseq-train command line of the task `mte` on the tiny corpus has in common."""
    return [
        *(str(corpus / "mte"), "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de,en-fr"),
        *("--arch", "mte_tiny", "--criterion", "mte", "--optimizer", "fused_adamw", "--lr", "0.003"),
        *("--save-dir", str(folder), "--no-progress-bar", "--num-workers", "0"),
    ]
