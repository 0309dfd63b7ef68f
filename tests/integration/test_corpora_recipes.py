"""From downloads to training data: captions.sh, sets that share features, and what every script says of itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.downloads import (
    COCO_TRAIN as TRAIN,
)
from tests.downloads import (
    FREE,
    annotations,
    coco_cn,
    coco_split_file,
    karpathy,
    karpathy_image,
    lines,
    run,
    tokenizer,
    touch,
    works,
    write,
)
from tests.tiny_models import tiny_clip_directory


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    return coco_split_file(tmp_path)


def test_from_download_to_fairseq(tmp_path: Path, split_file: Path, repository_root: Path) -> None:
    """The recipe, with a stub for mclip-features that logs its arguments."""
    root = touch(tmp_path / "images", [TRAIN, *[f"COCO_val2014_{number:012d}.jpg" for number in range(42, 48)]])
    program = write(tmp_path / "bin" / "mclip-features", f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    out = tmp_path / "coco"
    command: list[object] = ["preprocess/captions.sh", "--xlmr", tokenizer(tmp_path / "xlmr"), "--output", out]
    command += ["--images", root, "--teacher", "clip", "--store-dtype", "float32", "--"]
    command += ["coco", "--karpathy", split_file, *FREE]
    for name in ("train.de.ids", "train.de-None.de.bin", "dict.txt"):  # of an earlier call with another language
        touch(out / "bin", [name])
    done = subprocess.run(
        list(map(str, command)),
        cwd=repository_root,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((out / "bin").glob("*.de*"))
    names = {path.name for path in (out / "bin").iterdir()}
    assert {"train.en-None.en.bin", "valid.en-None.en.idx", "train.en.ids", "valid.en.ids"} <= names
    assert not [name for name in names if name.startswith("test")]
    text = out / "text"
    assert lines(tmp_path / "calls") == [
        f"--model clip --images {text}/images.tsv --root {root} --output {out}/features/image --store-dtype float32",
        f"--model clip --captions {text}/texts.en.tsv --output {out}/features/text --store-dtype float32",
    ]


def several_sets(folder: Path) -> dict[str, tuple[list[list[object]], str]]:
    """The scripts and their arguments of docs/data.md's fine-tunings on several sets, and the languages."""
    split_file = karpathy(
        folder / "dataset_coco.json",
        [
            karpathy_image(42, "train", ["a dog", "the dog"]),
            karpathy_image(44, "val", ["a cat"]),
            karpathy_image(46, "val", ["a cow"]),
        ],
    )
    stair = annotations(folder / "stair.json", {42: ["犬がいる"], 44: ["猫がいる"], 46: ["牛がいる"]})
    cn = coco_cn(
        folder / "coco-cn",
        "COCO_train2014_000000000009#0\t一只狗\nCOCO_val2014_000000000044#0\t一只猫\nCOCO_val2014_000000000046#0\t一头牛\n",
    )
    write(cn / "coco-cn_val.txt", "COCO_val2014_000000000044\nCOCO_val2014_000000000046\n")
    data = folder / "data"
    for split, names in (("train", "1.jpg\n2.jpg\n"), ("val", "3.jpg\n4.jpg\n")):
        for task, languages, numbers, listed in (
            (1, "fr cs", [""], ""),
            (2, "en de", [f".{n}" for n in "12345"], "_images"),
        ):
            write(data / f"task{task}" / "image_splits" / f"{split}{listed}.txt", names)
            for lang in languages.split():
                for number in numbers:
                    write(data / f"task{task}" / "raw" / f"{split}{number}.{lang}.gz", f"{lang}{number} a\n{lang} b\n")
    multi30k = ["multi30k", "--data", data, "--splits", "train", "val", "--task"]
    return {
        "mscoco": (
            [
                ["coco", "--karpathy", split_file],
                ["stair", "--karpathy", split_file, "--captions", stair],
                ["coco_cn", "--folder", cn],
            ],
            "en,ja,zh",
        ),
        "multi30k": (
            [[*multi30k, 2, "--languages", "en", "de"], [*multi30k, 1, "--languages", "fr", "cs"]],
            "en,de,fr,cs",
        ),
    }


def pieces_and_binaries(folder: Path, xlmr: Path) -> None:
    """The rest of captions.sh, in this process."""
    ids = [path for split in ("train", "valid") for path in (folder / "text").glob(f"{split}.*.ids")]
    model = xlmr / "sentencepiece.bpe.model"
    works("encode", "--model", model, "--output", folder / "pieces", *[path.with_suffix("") for path in ids])
    command = ["--pieces", folder / "pieces", "--dictionary", xlmr / "dict.txt", "--output", folder / "bin"]
    works("binarise", *command, "--captions", *sorted({path.suffixes[0][1:] for path in ids}))
    for path in ids:
        shutil.copy(path, folder / "bin")


@pytest.mark.parametrize("case", ["mscoco", "multi30k"])
def test_training_on_several_sets_that_share_features(tmp_path: Path, run_train: Callable[..., str], case: str) -> None:
    from mclip_fairseq.cli.features import main as features

    sets, languages = several_sets(tmp_path)[case]
    names = [TRAIN, *(f"COCO_val2014_{number:012d}.jpg" for number in (42, 44, 46)), *(f"{n}.jpg" for n in range(1, 5))]
    root, xlmr, made = tmp_path / "images", tokenizer(tmp_path / "xlmr"), []
    root.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(root / name)
    for number, (script, *arguments) in enumerate(sets):
        made.append(tmp_path / f"set{number}")
        works(str(script), *arguments, "--images", root, "--output", made[-1] / "text", *FREE)
        pieces_and_binaries(made[-1], xlmr)
    listed = sorted({line for folder in made for line in lines(folder / "text" / "images.tsv")})
    write(tmp_path / "images.tsv", "\n".join(listed) + "\n")
    model = ["--model", str(tiny_clip_directory(tmp_path / "clip")), "--device", "cpu", "--output"]
    stores = [str(tmp_path / "features" / kind) for kind in ("image", "text")]
    assert features([*model, stores[0], "--images", str(tmp_path / "images.tsv"), "--root", str(root)]) == 0
    assert features([*model, stores[1], "--captions", str(made[0] / "text" / "texts.en.tsv")]) == 0
    log = run_train(
        *(":".join(str(folder / "bin") for folder in made), "--task", "trikd", "--langs", languages),
        *("--image-features", stores[0], "--text-features", stores[1], "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--freeze-text", "none", "--text-tokenizer", xlmr, "--num-workers", "0", "--optimizer", "sgd", "--lr", "0.1"),
        *("--batch-size", "2", "--max-epoch", "1", "--valid-retrieval", "--save-dir", tmp_path / "run"),
        "--no-progress-bar",
    )
    for lang in languages.split(","):
        assert f"train {lang}: " in log
        assert f"mean_recall_{lang}" in log


@pytest.mark.parametrize("recipe", ["parallel.sh", "captions.sh", "evaluation.sh"])
def test_recipes_help_and_refuse(tmp_path: Path, repository_root: Path, recipe: str) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(repository_root / "preprocess" / recipe), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert f"preprocess/{recipe} --" in call("--help").stdout
    assert call("--help").returncode == 0
    assert call().returncode == 2
    for wrong in (["--elvish", "x"], ["--output"], ["--output", tmp_path / "x", "en", "de", "--train"]):
        done = call(*wrong)
        assert done.returncode == 2
        assert done.stderr.startswith(recipe)


def test_help_of_every_script_says_where_the_data_are_from() -> None:
    scripts = [
        "parallel",
        "cc3m",
        "coco",
        "coco_cn",
        "flickr30k",
        "flickr30k_cn",
        "multi30k",
        "stair",
        "vizwiz",
        "yjcaptions",
    ]
    scripts += ["babel_imagenet", "sts", "tatoeba", "wit", "xflickrco", "xm3600", "xtd10"]
    for script in scripts:
        shown = run(script, "--help").out
        assert "rom the " in shown or "upon request" in shown.lower() or "distributed" in shown, script
        assert "http" not in shown


def test_help_needs_no_heavy_library(repository_root: Path) -> None:
    names = sorted(path.stem for path in (repository_root / "preprocess").glob("*.py"))
    assert len(names) > 15
    code = f"import sys, {', '.join(names)}\n"
    code += (
        "print([name for name in ('torch', 'fairseq', 'transformers', 'sentencepiece', 'ftfy') if name in sys.modules])"
    )
    path = os.pathsep.join([str(repository_root), str(repository_root / "preprocess")])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
