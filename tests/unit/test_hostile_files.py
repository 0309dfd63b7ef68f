"""No downloaded file runs code, writes outside its folder, or fills the memory."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from torch import Tensor

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli import features
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.export.card import read_report
from mclip_fairseq.export.conversions import CLIPOptions, convert_clip, convert_released, convert_translation
from mclip_fairseq.export.xlmr_archive import extract_text_encoder
from mclip_fairseq.formats.openai_clip import open_clip_settings
from mclip_fairseq.models.freezing import decode_identity
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.resilience.install import install
from mclip_fairseq.storage import files
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore, write_features
from mclip_fairseq.storage.files import read_json, read_lines
from mclip_fairseq.storage.pieces import SENTENCEPIECE
from tests import hostile, hostile_images
from tests.traps import TRAP, edit, evil_checkpoint, nothing_is_sprung, refused

_nothing_is_sprung = pytest.fixture(autouse=True)(nothing_is_sprung)

install()  # fairseq's own loader is one of the doors

DOORS: dict[str, Callable[[Path], object]] = {
    "inference": lambda file: MultilingualCLIP.from_pretrained(file),
    "released": lambda file: convert_released(file, file.parent, file.parent / "o"),
    "translation": lambda file: convert_translation(file, file.parent, file.parent / "o"),
    "clip": lambda file: convert_clip(file, file.parent / "o", CLIPOptions()),
    "fairseq": lambda file: checkpoint_utils.load_checkpoint_to_cpu(str(file)),
    "extract": lambda file: extract_text_encoder(file, file.parent, file.parent / "o"),
    "checkpoint": load_checkpoint,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["zip", "old format", "pickle", "legacy tar"])
def test_checkpoints_run_no_code(kind: str, door: str, tmp_path: Path) -> None:
    file = evil_checkpoint(tmp_path / "evil.pt", kind)
    assert "evil.pt: is not" in refused(lambda: DOORS[door](file))


def test_the_negative_control_a_trusted_pickle_springs_the_trap(tmp_path: Path) -> None:
    file = evil_checkpoint(tmp_path / "evil.pt", "zip")
    torch.load(file, weights_only=False)
    (tmp_path / TRAP).rmdir()  # it was there


@pytest.mark.parametrize("door", DOORS)
def test_torchscript_is_not_run(door: str, tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.trace(Module(), torch.zeros(1)).save(str(tmp_path / "evil.pt"))
    assert "evil.pt: is " in refused(lambda: DOORS[door](tmp_path / "evil.pt"))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["zip", "tar", "empty", "text", "truncated", "list", "odd"])
def test_a_file_that_is_not_a_checkpoint_is_one_sentence(door: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"model": [1], "cfg": {"model": 3, "task": []}, "criterion": 1, "state_dict": 7}, file)
    content = {
        "zip": hostile_images.slip("zip"),
        "tar": hostile_images.slip("tar"),
        "empty": b"",
        "text": b"<html>not found</html>",
        "truncated": file.read_bytes()[:-50],
        "odd": file.read_bytes(),
    }
    if kind == "list":
        torch.save([torch.zeros(1)], file)
    else:
        file.write_bytes(content[kind])
    if (kind, door) == ("odd", "checkpoint"):
        assert load_checkpoint(file)["model"] == [1]
    else:
        assert "evil.pt: " in refused(lambda: DOORS[door](file))


def test_a_checkpoint_that_unpacks_to_more_than_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**25))
    assert "unpacks to 33554432 bytes" in refused(lambda: load_checkpoint(tmp_path / "x.pt"))


@pytest.mark.parametrize("option", ["encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "max_positions"])
def test_an_archive_that_claims_more_than_it_holds(option: str, tmp_path: Path) -> None:
    options = {"encoder_layers": 1, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2}
    cfg = Namespace(**options, encoder_max_positions=30, dropout=0.1, attention_dropout=0.1)
    dictionary = Dictionary()
    encoder = XLMREncoder(xlmr_args(cfg), dictionary)
    torch.save(encoder.checkpoint(), tmp_path / "model.pt")
    assert XLMREncoder.from_checkpoint(tmp_path, dictionary).dim == 8
    setattr(encoder.args, option, 1 << 24)
    torch.save(encoder.checkpoint(), tmp_path / "model.pt")
    said = refused(lambda: XLMREncoder.from_checkpoint(tmp_path, dictionary))
    assert f"model.pt: says {option} 16777216, but its weights have " in said


# ------------------------------------------------------------------------------------------ JSON


def test_json_that_is_too_deep_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(hostile.DEEP_JSON)
    for call in (
        lambda: read_json(tmp_path / "open_clip_config.json"),
        lambda: read_report(tmp_path / "open_clip_config.json"),
        lambda: open_clip_settings(tmp_path / "weights.bin"),
    ):
        assert "open_clip_config.json: cannot be read: is nested too deeply" in refused(call)
    identity = torch.frombuffer(bytearray(hostile.DEEP_JSON), dtype=torch.uint8)
    assert "nested too deeply" in refused(lambda: decode_identity(identity))
    assert "cannot be read" in refused(lambda: decode_identity(torch.ones(3)))
    with pytest.raises(RecursionError):  # the negative control
        json.loads(hostile.DEEP_JSON)


REPORT: dict[str, Any] = {"results": {"en": {"bleu": 1.0}}, "average": {"all": {"bleu": 1.0}}, "protocol": "strict"}
REPORT |= {"command": "x", "model": {}, "name": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        *({"model": [1]}, {"results": {}}, {"results": []}, {"results": {"en": {"bleu": "x"}}}, {"average": 3}),
        *({"average": {"zzz": {}}}, {"gallery": "x"}, {"notes": 3}, {"mean_rank_variance": 3}, {"command": None}),
    ],
)
def test_reports_for_a_card_that_are_damaged(changes: dict[str, Any], tmp_path: Path) -> None:
    edit(tmp_path / "report.json", **REPORT)
    assert read_report(tmp_path / "report.json") == REPORT
    edit(tmp_path / "report.json", **changes)
    if changes == {"command": None}:
        read_report(tmp_path / "report.json")
    else:
        said = refused(lambda: read_report(tmp_path / "report.json"))
        assert "report.json: " in said
        assert said.endswith("; give the report.json of mclip-evaluate")


@pytest.mark.parametrize("content", [hostile.DEEP_JSON, b"[]", b"{", b'{"settings": 1}'])
def test_plans_of_features_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f" / "partial").mkdir(parents=True)
    (tmp_path / "f" / "partial" / "plan.json").write_bytes(content)
    values = np.ones((1, 2), np.float32)
    assert "plan.json: " in refused(lambda: write_features(tmp_path / "f", ["a"], values, model="x", normalized=False))


@pytest.mark.parametrize(
    "record",
    [
        *("[]", "{}", '{"file": "../x", "rows": 1, "sha256": "", "skipped": []}'),
        '{"file": "features-00000.npy", "rows": 1, "sha256": "", "skipped": [["a"]]}',
    ],
)
def test_records_of_shards_that_are_damaged(record: str, tmp_path: Path) -> None:
    values = np.ones((2, 2), np.float32)
    settings: dict[str, Any] = {"teacher": {"name": "x"}, "dim": 2, "modality": "image", "normalized": False}
    writer = FeatureWriter(tmp_path / "f", ["a", "b"], **settings, dtype="float32", shard_rows=1)
    writer.write(0, values[:1])
    (tmp_path / "f" / "partial" / "00000.json").write_text(record)
    assert "remove it, and the shard will be written again" in refused(writer.pending)


# ------------------------------------------------------------------------------------------ archives


def test_a_gz_file_that_is_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(files.BOMB_BYTES + files.BLOCK), 9))
    assert (tmp_path / "x.gz").stat().st_size < 100_000
    assert "x.gz: unpacks to more than" in refused(lambda: read_lines(tmp_path / "x.gz"))
    # Each member of a second one is small, and both together are not.
    member = gzip.compress(bytes(files.BOMB_BYTES * 2 // 3), 9)
    (tmp_path / "y.gz").write_bytes(member * 2)
    assert "y.gz: unpacks to more than" in refused(lambda: read_lines(tmp_path / "y.gz"))


@pytest.mark.parametrize("rest", [b"", b"\0" * 9, gzip.compress(b"d\n", mtime=0)], ids=["none", "padding", "member"])
def test_gz_files_of_any_writer(rest: bytes, tmp_path: Path) -> None:
    text = b"a\nb\n" * 1000
    (tmp_path / "x.gz").write_bytes(gzip.compress(text) + gzip.compress(b"c\n") + rest)
    assert read_lines(tmp_path / "x.gz") == gzip.decompress((tmp_path / "x.gz").read_bytes()).decode().split("\n")[:-1]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:20] + b"\xff\xff" + b[22:], lambda b: b + b"rest"])
def test_gz_files_that_are_damaged(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(32, 127, 5000, dtype=np.uint8).tobytes()
    (tmp_path / "x.gz").write_bytes(damage(gzip.compress(data)))
    assert "x.gz: cannot be read" in refused(lambda: read_lines(tmp_path / "x.gz"))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_never_unpacked(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / f"x.{kind}"
    archive.write_bytes(hostile_images.slip(kind))
    refused(lambda: FeatureStore.open(archive))
    refused(lambda: MultilingualCLIP.from_pretrained(archive))
    for option in ("--images", "--captions"):
        out = tmp_path / "out"
        assert features.main(["--model", "nowhere", option, str(archive), "--output", str(out), "--device", "cpu"]) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, pickle.dumps(hostile.Trap(Path(TRAP)))])
def test_a_tokenizer_that_is_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 1\n")
    (tmp_path / SENTENCEPIECE).write_bytes(content)
    assert "is not a SentencePiece model" in refused(lambda: XLMRTokenizer(tmp_path))
