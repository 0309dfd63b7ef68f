"""`mclip-translate`: ids kept, equal to fairseq-generate, resumable, several machines, empty lines."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mclip_fairseq.cli.translate import main as translate
from mclip_fairseq.encoding.bulk import read_caption_list
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_json, write_json
from mclip_fairseq.translation import TranslationSettings, TranslationWriter, Translator
from tests.downloads import lines, touch, works
from tests.tiny_data import mte_options, sentences, write

Train = Callable[..., str]


@pytest.fixture(scope="module")
def checkpoint(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MTE of a few updates: what it says is poor, but it says it every time."""
    folder = tmp_path_factory.mktemp("mte")
    run_train(
        *mte_options(tiny_corpus, folder),
        *(
            "--lang-pairs",
            "en-de,en-fr",
            "--lr",
            "0.005",
            "--max-tokens",
            "600",
            "--max-update",
            "150",
            "--disable-validation",
        ),
    )
    return folder / "checkpoint_last.pt"


def command(checkpoint: Path, corpus: Path, folder: Path, *more: object) -> list[str]:
    """Translate 12 English captions into two languages."""
    captions = folder / "en.tsv"
    if not captions.exists():
        write(captions, [f"img{number}\t{text}" for number, text in enumerate(sentences("en")[:12])])
    values = [checkpoint, captions, "--tokenizer", corpus / "tokenizer", "--to", "de,fr", "--device", "cpu", *more]
    return [str(value) for value in values]


def test_every_caption_is_translated_under_its_id(checkpoint: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--beam", 2)
    assert translate([*arguments, "--output", str(tmp_path / "whole")]) == 0
    for lang in ("de", "fr"):
        rows = [line.split("\t") for line in (tmp_path / "whole" / f"{lang}.tsv").read_text().splitlines()]
        assert [name for name, _ in rows] == [f"img{number}" for number in range(12)]
        assert all(text for _, text in rows)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"de.tsv", "fr.tsv", "manifest.json"}


def test_the_output_feeds_features_own_captions_and_ccrk(checkpoint: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--beam", 1, "--output", tmp_path / "out")
    assert translate(arguments) == 0
    tables = {"en": tmp_path / "en.tsv", "de": tmp_path / "out" / "de.tsv"}
    ids = [f"img{number}" for number in range(12)]
    assert [name for name, _ in read_caption_list(tables["de"])] == ids
    images = touch(tmp_path / "images", [f"{name}.png" for name in ids])
    sources = [f"{lang}={table}" for lang, table in tables.items()]
    works("own", *sources, "--columns", "image", "caption", "--images", images, "--output", tmp_path / "own")
    own = sorted(path.name for path in (tmp_path / "own").glob("*.de"))
    assert "train.de" in own
    works("ccrk", "--tables", *[f"train.{source}" for source in sources], "--output", tmp_path / "ccrk")
    assert lines(tmp_path / "ccrk" / "train.de.ids") == ids


def test_translations_are_those_of_fairseq_generate(
    checkpoint: Path, tiny_corpus: Path, tmp_path: Path, run_in_process: Train
) -> None:
    """The same search, sentence by sentence, whatever the batches are."""
    pieces = (tiny_corpus / "pieces" / "valid.en").read_text(encoding="utf-8").splitlines()
    english = [line.replace(" ", "").replace("\u2581", " ").strip() for line in pieces]
    write(tmp_path / "en.tsv", [f"{number}\t{text}" for number, text in enumerate(english)])
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--beam", 2, "--batch-size", 5)
    assert translate([*arguments, "--output", str(tmp_path / "out")]) == 0
    plugin = Path(__file__).resolve().parents[2] / "mclip_fairseq"
    log = run_in_process(
        "fairseq-generate",
        *(str(tiny_corpus / "mte"), "--user-dir", str(plugin), "--task", "mte", "-s", "en", "-t", "de", "--cpu"),
        *("--path", str(checkpoint), "--beam", "2", "--remove-bpe", "sentencepiece", "--gen-subset", "valid"),
        *("--batch-size", "16"),
    )
    rows = [line.split("\t") for line in log.splitlines() if line.startswith("D-")]
    theirs = {row[0].removeprefix("D-"): " ".join(row[2].split()) for row in rows}
    ours = dict(line.split("\t") for line in (tmp_path / "out" / "de.tsv").read_text().splitlines())
    assert len(theirs) == 16
    assert ours == theirs


def test_a_stopped_run_continues_and_machines_share_the_work(
    checkpoint: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--beam", 1, "--shard-rows", 5)
    assert translate([*arguments, "--output", str(tmp_path / "whole")]) == 0
    calls: list[int] = []
    original = Translator.translate

    def counted(self: Translator, texts: list[str], *more: object) -> list[str]:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, texts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Translator, "translate", counted)
    shared = [*arguments, "--output", str(tmp_path / "parts"), "--machines", "2"]
    assert translate([*shared, "--machine", "1"]) != 0
    assert len(list((tmp_path / "parts" / "partial").glob("*.tsv"))) == 2
    assert translate([*shared, "--machine", "1"]) == 0
    assert not (tmp_path / "parts" / "manifest.json").exists()
    assert translate([*shared, "--machine", "0"]) == 0
    assert len(calls) == 7  # six shards, one of them twice
    for name in ("de.tsv", "fr.tsv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert translate([*shared, "--machine", "0"]) == 0
    assert len(calls) == 7


def test_empty_captions_are_refused_or_within_the_budget(
    checkpoint: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "en.tsv", ["a\tthe red dog", "b\t \u200b", "c\tthe small cat"])
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--output", tmp_path / "out")
    assert translate(arguments) == 2
    assert "2 captions have no translation" in capsys.readouterr().err
    assert translate([*arguments, "--skip-budget", "2"]) == 0
    assert [line.split("\t")[0] for line in (tmp_path / "out" / "de.tsv").read_text().splitlines()] == ["a", "c"]
    skipped = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()
    assert skipped == ["b\tde\tthe caption is empty", "b\tfr\tthe caption is empty"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--to", "de,nl"), "the model has no language nl; choose from en, de, fr"),
        (("--to", "en"), "name languages other than en"),
        (("--machine", "2"), "--machine must be 0 to 0"),
    ],
)
def test_what_cannot_be_translated_is_refused(
    more: tuple[str, ...],
    message: str,
    checkpoint: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert translate([*command(checkpoint, tiny_corpus, tmp_path, "--output", tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


def test_other_captions_or_settings_are_not_mixed(
    checkpoint: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(checkpoint, tiny_corpus, tmp_path, "--output", tmp_path / "out")
    assert translate([*arguments, "--beam", "1"]) == 0
    assert translate([*arguments, "--beam", "2"]) == 2
    assert "was started with a different beam" in capsys.readouterr().err
    assert translate([*arguments, "--beam", "1", "--dtype", "bfloat16"]) == 2
    assert "--dtype bfloat16 needs a GPU" in capsys.readouterr().err
    lowered = TranslationSettings("en", ("de",), beam=2, dtype="bfloat16")
    translator = Translator(checkpoint, tiny_corpus / "tokenizer", torch.device("cpu"), lowered)
    exact = Translator(checkpoint, tiny_corpus / "tokenizer", torch.device("cpu"), replace(lowered, dtype="float32"))
    texts = sentences("en")[:4]
    found, wanted = (one.translate(texts, "en", "de", 4) for one in (translator, exact))
    assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= 2
    other = shutil.copytree(tiny_corpus / "tokenizer", tmp_path / "other")
    with (other / "sentencepiece.bpe.model").open("ab") as file:
        file.write(b"\0")
    assert translate([*arguments, "--beam", "1", "--tokenizer", str(other)]) == 2
    assert "was started with a different tokenizer" in capsys.readouterr().err
    # A version that knew no other type computed in float32.
    manifest = tmp_path / "out" / "manifest.json"
    write_json(manifest, {name: value for name, value in read_json(manifest).items() if name != "dtype"})
    assert translate([*arguments, "--beam", "1"]) == 0
    written = (tmp_path / "out", read_caption_list(tmp_path / "en.tsv"))
    settings = TranslationSettings("en", ("de", "fr"), beam=1, dtype="bfloat16")
    with pytest.raises(UserError, match="was started with a different dtype"):
        TranslationWriter(*written, settings, checkpoint, tiny_corpus / "tokenizer")
