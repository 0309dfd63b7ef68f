"""No file that a user may have downloaded runs code, writes outside its place, or fills the memory."""

from __future__ import annotations

import ast
import gzip
import io
import json
import pickle
import tarfile
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
from mclip_fairseq.data.tokenizer import SENTENCEPIECE, XLMRTokenizer
from mclip_fairseq.export.card import read_report
from mclip_fairseq.export.conversions import CLIPOptions, convert_clip, convert_released, convert_translation
from mclip_fairseq.export.xlmr_archive import extract_text_encoder
from mclip_fairseq.formats.openai_clip import open_clip_settings
from mclip_fairseq.models.freezing import decode_identity
from mclip_fairseq.models.teacher import DualEncoderTeacher, ImageTransform
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.storage import files
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore, write_features
from mclip_fairseq.storage.files import read_json, read_lines
from mclip_fairseq.tasks.mte import MTETask
from tests import hostile
from tests.tiny_models import tiny_clip_directory

TRAP = "trap"


@pytest.fixture(autouse=True)
def _nothing_is_sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whatever a test does: no trap folder, and no file above the test's folder."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.parent.iterdir())
    yield
    assert set(tmp_path.parent.iterdir()) == before
    assert not (tmp_path / TRAP).exists()


def refused(call: Callable[[], object]) -> str:
    """Call, and expect one sentence."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    assert str(caught.value).isprintable()  # no line break, and nothing that a terminal would obey
    return str(caught.value)


def evil_checkpoint(file: Path, kind: str) -> Path:
    """A checkpoint that makes a folder where pickles are trusted."""
    state = {"model": {"w": torch.zeros(1)}, "args": hostile.Trap(Path(TRAP))}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(state))
    elif kind == "legacy tar":
        with tarfile.open(file, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                content = pickle.dumps(hostile.Trap(Path(TRAP)))
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file


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
def test_what_is_no_checkpoint_is_one_sentence(door: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"model": [1], "cfg": {"model": 3, "task": []}, "criterion": 1, "state_dict": 7}, file)
    content = {
        "zip": hostile.slip("zip"),
        "tar": hostile.slip("tar"),
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


# ------------------------------------------------------------------------------------------ model directories

MODULE = f"from pathlib import Path\nPath({TRAP!r}).mkdir()\nclass Evil:\n    pass\n"
AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil")


def edit(file: Path, **changes: Any) -> None:
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(stored | changes), encoding="utf-8")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tiny_clip_directory(tmp_path / "clip")
    (folder / "evil.py").write_text(MODULE)
    return folder


def evil_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="evil", auto_map=AUTO)


def evil_processor(folder: Path) -> None:
    processor = {"image_processor_type": "Evil", "processor_class": "Evil"}
    edit(folder / "preprocessor_config.json", **processor, auto_map=AUTO)


def evil_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def evil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    evil_checkpoint(folder / "pytorch_model.bin", "zip")


def evil_sentence_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))


def path_above(folder: Path) -> None:
    """A packed model that would be read from beside the directory."""
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "../clip", "type": "x.y"}]))


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(hostile.DEEP_JSON)


def deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(hostile.DEEP_JSON)


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def odd_config(folder: Path) -> None:
    edit(folder / "config.json", vision_config=3, text_config="x")


def many_layers(folder: Path) -> None:
    edit(folder / "config.json", text_config={"num_hidden_layers": 1 << 30})


def wide_layers(folder: Path) -> None:
    edit(folder / "config.json", vision_config={"hidden_size": 1 << 16, "intermediate_size": 1 << 18})


MODELS = (
    *(evil_model, evil_processor, evil_weights),
    *(evil_sentence_model, path_above, deep_config, deep_tokenizer, huge_header, odd_config, many_layers, wide_layers),
)


@pytest.mark.parametrize("damage", MODELS)
def test_model_directories_run_no_code(damage: Callable[[Path], None], clip: Path, tmp_path: Path) -> None:
    damage(clip)
    refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu"))
    if damage not in (evil_sentence_model, path_above):
        assert str(clip) in refused(lambda: DualEncoderTeacher.from_pretrained(clip))


@pytest.mark.parametrize(
    "changes",
    [
        *({"size": {"shortest_edge": 16000}}, {"crop_size": {"height": 32, "width": 16000}}, {"size": 10**30}),
        {"size": {"height": 1e9, "width": 1e9}, "do_center_crop": False},
    ],
)
def test_a_processor_of_huge_pictures_is_refused_before_it_makes_one(
    changes: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(clip / "preprocessor_config.json", **changes)
    monkeypatch.setattr(ImageTransform, "__call__", lambda *a: pytest.fail("made before it was compared"))
    said = refused(lambda: DualEncoderTeacher.from_pretrained(clip))
    assert f"{clip}: its image processor has a " in said
    assert "size of 1" in said
    assert "but the model reads 32; restore the preprocessor_config.json" in said


def test_a_crop_that_is_switched_off_may_have_any_size(clip: Path) -> None:
    """transformers writes 224, its default, beside the size of a small model."""
    edit(clip / "preprocessor_config.json", crop_size={"height": 16000, "width": 16000}, do_center_crop=False)
    assert DualEncoderTeacher.from_pretrained(clip).image_size == 32


def test_a_tokenizer_of_another_model(clip: Path) -> None:
    file = clip / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["a</w>"] = 10**9
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    assert model.encode_text("b").isfinite().all()
    assert "clip: its tokenizer gives the id 1000000000, but the model has 514" in refused(
        lambda: model.encode_text("a")
    )


def test_a_tokenizer_without_words(clip: Path) -> None:
    file = clip / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "clip" in refused(lambda: MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a"))


@pytest.mark.parametrize("texts", [None, b"a dog", 3 * [None], ["a", "\ud800"], ["a", 7]])
def test_what_is_no_text_is_one_sentence(texts: Any, clip: Path) -> None:
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    assert refused(lambda: model.encode_text(texts)).startswith("text ")


def test_a_tokenizer_of_another_class_runs_no_code(clip: Path) -> None:
    """What is at hand reads it, as if no code had been offered."""
    evil_tokenizer(clip)
    assert MultilingualCLIP.from_pretrained(clip, device="cpu").encode_text("a dog").isfinite().all()


@pytest.mark.parametrize("base", ["evil", "odd", "deep", "weights", "large"])
def test_text_towers_run_no_code(base: str, clip: Path, tmp_path: Path) -> None:
    if base == "evil":
        evil_model(clip)
    else:
        edit(clip / "config.json", model_type="bert", hidden_size=8, num_attention_heads=2, intermediate_size=8)
    tower = tmp_path / "tower"
    tower.mkdir()
    config: dict[str, Any] = {"modelBase": str(clip), "imageDimSize": 8}
    (tower / "config.json").write_text(json.dumps(config | ({"imageDimSize": "many"} if base == "odd" else {})))
    if base == "deep":
        (tower / "config.json").write_bytes(hostile.DEEP_JSON)
    if base in ("weights", "large"):
        for file in clip.glob("*token*"):
            (tower / file.name).write_bytes(file.read_bytes())
    if base == "weights":
        evil_checkpoint(tower / "pytorch_model.bin", "zip")
    if base == "large":
        edit(clip / "config.json", vocab_size=1 << 40)
        (tower / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    said = refused(lambda: MultilingualCLIP.from_pretrained(tower, device="cpu"))
    assert base != "large" or "transformer.embeddings.word_embeddings.weight" in said


def test_options_of_other_models_are_not_evaluated(tmp_path: Path) -> None:
    """fairseq builds whatever model a checkpoint names, and some evaluate strings of their options as Python."""
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

    cfg = Wav2Vec2Config(conv_feature_layers=f"__import__('pathlib').Path({TRAP!r}).mkdir()")
    with pytest.raises((TypeError, AssertionError)):  # the negative control: fairseq alone runs it
        Wav2Vec2Model(cfg)
    (tmp_path / TRAP).rmdir()
    task = object.__new__(MTETask)
    task.langs = ["en", "de"]
    options = Namespace(**(vars(cfg) | {"_name": "wav2vec2"}))
    said = refused(lambda: task.build_model(options, from_checkpoint=True))
    assert "holds a model 'wav2vec2', which is not of this project" in said


def test_yaml_of_hydra_builds_no_objects(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    (tmp_path / "x.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{TRAP}]\n")
    with pytest.raises(Exception, match="could not determine a constructor for the tag"):
        OmegaConf.load(tmp_path / "x.yaml")


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
    assert "is not the record of a shard" in refused(writer.pending)


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
    archive.write_bytes(hostile.slip(kind))
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


# ------------------------------------------------------------------------------------------ the source itself

NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"),
    *("shelve.open", "joblib.load", "dill.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "tarfile.open"),
    *("shutil.unpack_archive", "cloudpickle.load", "np.fromregex", "torch.hub.load"),
}
# Calls that are safe with one argument only.
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "AutoModel.from_pretrained": ("weights_only", True),
}
# The one place that reads TorchScript, after the user said --trust.
TRUSTED = {
    ("mclip_fairseq/formats/openai_clip.py", "torch.jit.load"),  # behind --trust
    ("preprocess/corpora/tars.py", "tarfile.open"),  # read as a stream; no member is written under its own name
}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def suspicious(name: str, call: ast.Call) -> bool:
    if name in NEVER or name.endswith((".extractall", ".extract")) or name == "torch.jit.load":
        return True
    given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if given.get("trust_remote_code") or given.get("shell") or given.get("allow_pickle"):
        return True
    option = NEEDS.get(name)
    return option is not None and given.get(option[0]) is not option[1]


def test_the_source_calls_nothing_that_runs_what_it_reads(repository_root: Path) -> None:
    found, seen = set(), 0
    for folder in ("mclip_fairseq", "preprocess", "examples", "benchmarks"):
        for file in sorted((repository_root / folder).rglob("*.py")):
            for name, call in calls(ast.parse(file.read_text(encoding="utf-8"))):
                seen += 1
                if suspicious(name, call):
                    found.add((file.relative_to(repository_root).as_posix(), name))
    assert found == TRUSTED
    assert seen > 3000


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "torch.load(f)", "np.load(f, allow_pickle=True)", "a.extractall()", "f(x, trust_remote_code=True)"],
)
def test_the_negative_control_of_the_search(line: str) -> None:
    ((name, call),) = calls(ast.parse(line))
    assert suspicious(name, call)
