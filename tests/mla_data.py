"""The tiny corpus for `mla`: English with CLIP's tokenizer, the other languages with a WordPiece vocabulary."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_data import COLOURS, NOUNS, run, sentences, write
from tests.tiny_models import tiny_wordpiece

OTHERS = ("de", "fr", "nl")
DUTCH = {
    **dict(zip(NOUNS["en"], ["hond", "kat", "huis", "boom", "auto", "vogel", "bal", "boot"], strict=True)),
    **dict(zip(COLOURS["en"], ["rood", "blauw", "groen", "zwart", "wit"], strict=True)),
}


def captions(lang: str) -> list[str]:
    """All 120 captions of a language, aligned over languages; Dutch is English with other words."""
    if lang != "nl":
        return sentences(lang)
    return [" ".join(DUTCH.get(word, word) for word in line.split()) for line in sentences("en")]


def make_mla_corpus(folder: Path, photos: Path) -> Path:
    """`english/` and `others/`, data directories of two tokenizers, and `text/`, CLIP's features of the English.

    Args:
        folder: to write into.
        photos: what `make_photos` made: images, a CLIP as teacher, and its features of the images.
    """
    from mclip_fairseq.cli.features import main as features

    for lang in ("en", *OTHERS):
        lines = captions(lang)
        write(folder / "raw" / f"train.{lang}", lines[:104])
        write(folder / "raw" / f"valid.{lang}", lines[104:])
    words = {word for lang in OTHERS for line in captions(lang) for word in line.split()}
    vocabulary = tiny_wordpiece(folder / "vocab.txt", sorted(words))
    common = ("--pieces", folder / "raw", "--captions")
    run("binarise", *common, "en", "--tokenizer", photos / "teacher", "--output", folder / "english")
    run("binarise", *common, *OTHERS, "--tokenizer", vocabulary, "--output", folder / "others")
    for lang in ("en", *OTHERS):
        place = folder / ("english" if lang == "en" else "others")
        for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
            write(place / f"{split}.{lang}.ids", [f"img{n % 40}.png\ttxt{n}" for n in range(start, stop)])
    write(folder / "english.tsv", [f"txt{n}\t{line}" for n, line in enumerate(captions("en"))])
    command = ["--model", photos / "teacher", "--captions", folder / "english.tsv", "--output", folder / "text"]
    assert features([*map(str, command), "--store-dtype", "float32", "--device", "cpu"]) == 0
    return folder


def mla_options(corpus: Path, photos: Path, folder: Path, *more: object, langs: str = "de,fr") -> list[str]:
    """What every fairseq-train command line of `mla` on this corpus has in common."""
    values = [
        *("--langs", langs, "--arch", "mla_tiny", "--teacher", photos / "teacher", "--acquirers", "de,fr"),
        *("--text-tokenizer", corpus / "vocab.txt", "--max-caption-tokens", 77, "--num-workers", 0, "--batch-size", 26),
        *("--optimizer", "fused_adamw", "--lr", "0.003", "--weight-decay", "0.2", "--sampling-temperature", "inf"),
        *("--no-progress-bar", "--log-format", "json", "--no-epoch-checkpoints", "--save-dir", folder),
    ]
    return [str(value) for value in [*values, *more]]


def nlt(corpus: Path, photos: Path, folder: Path, *more: object, langs: str = "de,fr") -> list[str]:
    """Stage NLT: no English ids, and stored features of images for validation alone."""
    features = ("--text-features", corpus / "text", "--image-features", photos / "features")
    stage = ("--task", "distillation", "--criterion", "distillation", *features)
    return [str(corpus / "others"), *mla_options(corpus, photos, folder, *stage, *more, langs=langs)]


def le(corpus: Path, photos: Path, folder: Path, *more: object, langs: str = "de,fr") -> list[str]:
    """Stage LE: image features, no English ids."""
    stage = ("--task", "image_text", "--criterion", "image_text", "--image-features", photos / "features")
    return [str(corpus / "others"), *mla_options(corpus, photos, folder, *stage, *more, langs=langs)]


def finetune(corpus: Path, photos: Path, folder: Path, *more: object, langs: str) -> list[str]:
    """Fine-tuning on pixels: both data directories, both towers."""
    stage = ("--task", "image_text", "--criterion", "image_text", "--image-root", photos / "images")
    parts = ("--train-parts", "acquirers,embedding,linear,clip")
    data = f"{corpus / 'english'}:{corpus / 'others'}"
    return [data, *mla_options(corpus, photos, folder, *stage, *parts, *more, langs=langs)]


def untrained_directory(folder: Path, photos: Path, corpus: Path) -> Path:
    """A random mla of German and French, as mclip-export writes one."""
    import torch

    from mclip_fairseq.data.hf_tokenizer import PieceTokenizer
    from mclip_fairseq.export.mla import save_directory
    from mclip_fairseq.formats.mla import make_tower
    from mclip_fairseq.models.mla import MLAModel
    from mclip_fairseq.models.mla_options import MLAModelConfig
    from mclip_fairseq.models.teacher import DualEncoderTeacher

    tokenizer = PieceTokenizer.from_pretrained(corpus / "vocab.txt")
    rows, end = len(tokenizer.dictionary), tokenizer.dictionary.eos()
    torch.manual_seed(1)
    cfg = MLAModelConfig(acquirers="de,fr", acquirer_dim=8, embedding_rows=rows, embedding_dim=12, end_token=end)
    model = MLAModel(cfg, DualEncoderTeacher.from_pretrained(photos / "teacher"))
    save_directory(make_tower(model, tokenizer, "mla"), folder)
    return folder
