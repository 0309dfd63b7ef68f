"""The tutorial docs/own_data.md: its commands, taken from the page, on a tiny corpus with a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_data import COLOURS, NOUNS, write

STORED = Path(__file__).resolve().parents[1] / "data" / "legacy"
CONCEPTS = [(noun, colour) for noun in range(8) for colour in range(5)]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def demonstration(
    tmp_path: Path, repository_root: Path, run_train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder as `make demo` leaves it, with forty coloured squares and a model of one update; the code is linked."""
    monkeypatch.chdir(tmp_path)
    for name in ("preprocess", "examples", "mclip_fairseq"):
        (tmp_path / name).symlink_to(repository_root / name)
    run = Path("runs", "quickstart")  # relative, as in the demonstration
    corpus = run / "corpus"
    names = [f"twemoji/{number}.png" for number in range(len(CONCEPTS))]
    (corpus / "images" / "twemoji").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (32, 32), (6 * number, 255 - 6 * number, 40)).save(corpus / "images" / name)
    write(corpus / "gallery" / "held_out_concepts.ids", names)
    for lang in ("en", "de"):
        texts = [f"{COLOURS[lang][colour]} {NOUNS[lang][noun]}" for noun, colour in CONCEPTS]
        write(corpus / "gallery" / f"held_out_concepts.{lang}", texts)
    for name, source in (("encoder", "encoder"), ("teacher", "photos/teacher")):
        (run / name).symlink_to(STORED / source)
    data = STORED / "data"
    run_train(
        *(data / "captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", data / "image_features", "--text-features", data / "text_features", "--pooling", "mean"),
        *("--text-encoder", run / "encoder", "--teacher", run / "teacher", "--freeze-text", "none", "--fixed-target"),
        *("--projector-layers", 0, "--projector-start", "identity", "--optimizer", "fused_adamw", "--lr", 0.001),
        *("--batch-size", 40, "--max-update", 1, "--disable-validation", "--num-workers", 0, "--no-progress-bar"),
        *("--no-epoch-checkpoints", "--save-dir", run / "trikd"),
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_run(demonstration: Path, repository_root: Path) -> None:
    page = repository_root / "docs" / "own_data.md"
    commands = blocks(page, "bash")
    assert len(commands) == 6
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(repository_root)
    printed = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=demonstration,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed.append(done.stdout)
    mine = demonstration / "mine"
    assert len(list((demonstration / "photos").glob("*.de.txt"))) == 40
    counts = {
        split: len((mine / "text" / f"{split}.de").read_text().splitlines()) for split in ("train", "valid", "test")
    }
    assert counts == {"train": 32, "valid": 4, "test": 4}
    comparison = json.loads((mine / "evaluation" / "comparison.json").read_text(encoding="utf-8"))
    assert {"before", "after"} <= {report["name"] for report in comparison["reports"]}
    assert (mine / "model" / "model.safetensors").is_file()
    assert len(re.findall(r"\.png", printed[-1])) == 3  # the hits of the query
    (python,) = blocks(page, "python")
    code = subprocess.run(
        [sys.executable, "-c", python], cwd=demonstration, env=environment, capture_output=True, text=True, check=False
    )
    assert code.returncode == 0, code.stderr
    assert re.fullmatch(r"torch\.Size\(\[1, \d+\]\)", code.stdout.strip())
