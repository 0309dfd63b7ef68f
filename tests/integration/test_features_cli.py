"""`mclip-features`: the numbers of `transformers`, restartable, shareable, and nothing silently lost."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq.cli.features import main
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.features import FeatureStore
from tests.noise_photos import write_photos
from tests.tiny_models import tiny_clip_directory, tiny_dual_encoder_directory

NUMBER = 11
CAPTIONS = ["a red house", "the cat", "a photo of a dog", "a very small bird"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), NUMBER)


def run(clip: Path, output: Path, *more: object) -> int:
    """The command in this process, with small shards, on the CPU."""
    line = ["--model", clip, "--output", output, "--batch-size", 2, "--shard-rows", 3, "--workers", 0, *more]
    return main([*map(str, line), *([] if "--device" in more else ["--device", "cpu"])])


def content(folder: Path) -> dict[str, bytes]:
    """All bytes except those that say when and how the directory was made."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["made_by"]
    return files | {"manifest": json.dumps(manifest).encode()}


@pytest.fixture(scope="module")
def unbroken(clip: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "features"
    assert run(clip, output, "--images", photos) == 0
    return output


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The error of a refused run: status 2, no traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    progress, start, message = capsys.readouterr().err.rpartition("mclip-features: error: ")
    assert start
    assert "Traceback" not in progress + message
    return message


def test_images_equal_transformers_called_directly(clip: Path, photos: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path, "--images", photos, "--store-dtype", "float32") == 0
    store = FeatureStore.open(tmp_path)
    shield_torchaudio()
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(clip).eval(), AutoImageProcessor.from_pretrained(clip)
    expected_ids = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert store.ids == expected_ids
    for name, row in zip(store.ids, store.take(range(NUMBER)), strict=True):
        with torch.no_grad():
            pixels = processor(Image.open(photos / name), return_tensors="pt")
            expected = model.get_image_features(**pixels).pooler_output[0]
        torch.testing.assert_close(torch.from_numpy(row), expected, rtol=1e-6, atol=1e-6)


def test_captions_equal_transformers_called_directly(tmp_path: Path) -> None:
    folder = tiny_dual_encoder_directory(tmp_path / "dual")
    (tmp_path / "en.txt").write_text("".join(f"{line}\n" for line in CAPTIONS))
    output = tmp_path / "out"
    assert run(folder, output, "--captions", tmp_path / "en.txt", "--store-dtype", "float32") == 0
    store = FeatureStore.open(output)
    assert store.ids == ["0", "1", "2", "3"]
    assert store.manifest["modality"] == "text"
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(CAPTIONS):
        with torch.no_grad():
            tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            expected = model.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(torch.from_numpy(store.take([row])), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_computed_twice_it_is_the_same(clip: Path, photos: Path, unbroken: Path, tmp_path: Path, workers: int) -> None:
    assert run(clip, tmp_path, "--images", photos, "--workers", workers) == 0
    assert content(tmp_path) == content(unbroken)


def test_the_manifest_says_what_and_how(clip: Path, unbroken: Path) -> None:
    store = FeatureStore.open(unbroken)
    assert (len(store), store.dim, store.dtype) == (NUMBER, 16, np.dtype(np.float16))
    assert store.identity == DualEncoderTeacher.from_pretrained(clip).identity
    assert store.manifest["made_by"]["command"][:2] == ["mclip-features", "--model"]
    assert store.manifest["made_by"]["versions"]["torch"] == torch.__version__
    assert "CLIPImageProcessor" in store.manifest["preprocessing"]
    assert [entry["rows"] for entry in store.manifest["shards"]] == [3, 3, 3, 2]


def test_normalised(clip: Path, photos: Path, unbroken: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path, "--images", photos, "--normalize") == 0
    rows = FeatureStore.open(tmp_path).take(range(NUMBER)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    raw = FeatureStore.open(unbroken).take(range(NUMBER)).astype(np.float32)
    np.testing.assert_allclose(rows, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=2e-3)


def killed(clip: Path, photos: Path, output: Path, method: str) -> None:
    """Run the command in a child that is killed (SIGKILL) when the second shard reaches `method`."""

    def child() -> None:
        real: Callable[..., Any] = getattr(FeatureWriter, method)

        def dying(self: FeatureWriter, shard: int, *arguments: Any) -> Any:
            if shard == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, shard, *arguments)

        setattr(FeatureWriter, method, dying)
        run(clip, output, "--images", photos)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_continues_and_keeps_finished_shards(
    clip: Path, photos: Path, unbroken: Path, tmp_path: Path
) -> None:
    killed(clip, photos, tmp_path, "write")
    first = tmp_path / "features-00000.npy"
    before = (first.stat().st_ino, first.stat().st_mtime_ns)
    assert not (tmp_path / "features-00001.npy").exists()
    with pytest.raises(ValueError, match="not finished"):
        FeatureStore.open(tmp_path)
    # What a kill during a write leaves behind.
    (tmp_path / "features-00001.12345.tmp").write_bytes(b"half a shard")
    (tmp_path / "features-00002.npy").write_bytes(b"a shard without its record")
    assert run(clip, tmp_path, "--images", photos) == 0
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == before
    assert content(tmp_path) == content(unbroken)
    # A third run finds everything done.
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(clip, tmp_path, "--images", photos) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_a_run_killed_before_its_first_shard_starts_again(
    clip: Path, photos: Path, unbroken: Path, tmp_path: Path
) -> None:
    killed(clip, photos, tmp_path, "inputs")
    assert run(clip, tmp_path, "--images", photos) == 0
    assert content(tmp_path) == content(unbroken)


def test_two_machines_share_the_work(
    clip: Path, photos: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(clip, tmp_path, "--images", photos, "--machines", 2, "--machine", 1) == 0
    assert "2 of 4 shards are left to other machines" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["features-00001.npy", "features-00003.npy"]
    assert not (tmp_path / "manifest.json").exists()
    assert run(clip, tmp_path, "--images", photos, "--machines", 2, "--machine", 0) == 0
    assert content(tmp_path) == content(unbroken)


@pytest.mark.parametrize("state", ["finished", "partial"])
def test_different_settings_are_refused(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    output = tmp_path / "out"
    assert run(clip, output, "--images", photos, *(["--machines", 2] if state == "partial" else [])) == 0
    other_model = tiny_clip_directory(tmp_path / "clip", seed=5)
    (tmp_path / "list").write_text(f"x\t{photos}/00.png\n")
    for arguments, named in [
        ((other_model, output, "--images", photos), "a different teacher"),
        ((clip, output, "--images", tmp_path / "list"), "a different number of inputs and list of ids"),
        ((clip, output, "--images", photos, "--store-dtype", "float32"), "a different dtype"),
        ((clip, output, "--images", photos, "--shard-rows", 4), "a different number of rows per shard"),
        ((clip, output, "--images", photos, "--normalize"), "a different normalized"),
    ]:
        message = refused(capsys, *arguments)
        assert f"{output}: was started with {named}" in message


def test_list_file_with_ids_and_root(clip: Path, photos: Path, unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("second\ta b/01.png\nfirst\t00.png\n")
    assert run(clip, tmp_path / "out", "--images", tmp_path / "list.tsv", "--root", photos) == 0
    store, whole = FeatureStore.open(tmp_path / "out"), FeatureStore.open(unbroken)
    assert store.ids == ["second", "first"]
    expected = whole.take(whole.rows(["a b/01.png", "00.png"])).astype(np.float32)
    np.testing.assert_allclose(store.take([0, 1]).astype(np.float32), expected, rtol=2e-3, atol=1e-3)


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """The photos, three of them unreadable in three ways."""
    root = tmp_path / "damaged"
    root.mkdir()
    for path in photos.rglob("*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    (root / "01.png").write_bytes((root / "01.png").read_bytes()[:200])
    (root / "05.png").write_text("no image at all")
    (root / "10.png").unlink()
    (root / "10.png").symlink_to(root / "gone.png")
    return root


BROKEN = ["01.png: cannot be decoded", "05.png: is not an image", "10.png: does not exist"]


def test_unreadable_images_are_all_listed(
    clip: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, clip, tmp_path / "out", "--images", damaged)
    assert "3 of 11 inputs cannot be read" in message
    assert all(line in message for line in BROKEN)
    assert not list((tmp_path / "out").glob("*.npy"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_skipped_inputs_are_recorded(clip: Path, damaged: Path, unbroken: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(clip, output, "--images", damaged, "--skip-budget", 3) == 0
    store, whole = FeatureStore.open(output), FeatureStore.open(unbroken)
    good = [f"{number:02d}.png" for number in range(NUMBER) if number not in (1, 5, 10)]
    assert store.ids == good
    assert [entry["rows"] for entry in store.manifest["shards"]] == [2, 2, 3, 1]
    listed = [line.split("\t") for line in (output / "skipped.tsv").read_text().splitlines()]
    for (name, reason), beginning in zip(listed, BROKEN, strict=True):
        assert f"{name}: {reason}".startswith(beginning)
    same = [f"a b/{name}" if int(name[:2]) % 2 else name for name in good]
    expected = whole.take(whole.rows(same)).astype(np.float32)
    np.testing.assert_allclose(store.take(range(8)).astype(np.float32), expected, rtol=2e-3, atol=1e-3)


def test_more_than_the_budget_stops(
    clip: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    message = refused(capsys, clip, output, "--images", damaged, "--skip-budget", 2)
    assert "more than --skip-budget 2" in message
    assert not (output / "manifest.json").exists()
    # Inputs skipped in finished shards count when the run is repeated.
    assert "so it needs --skip-budget" in refused(capsys, clip, output, "--images", damaged)
    assert run(clip, output, "--images", damaged, "--skip-budget", 3) == 0
    assert len(FeatureStore.open(output)) == NUMBER - 3
    assert "so it needs --skip-budget 3" in refused(capsys, clip, output, "--images", damaged)


def test_captions_with_ids(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"id{number}\t{text}" for number, text in enumerate(CAPTIONS)]
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert run(clip, tmp_path / "out", "--captions", tmp_path / "c.tsv.gz") == 0
    assert FeatureStore.open(tmp_path / "out").ids == ["id0", "id1", "id2", "id3"]
    (tmp_path / "twice.tsv").write_text("x\tone\ny\ttwo\nx\tthree\n")
    message = refused(capsys, clip, tmp_path / "twice", "--captions", tmp_path / "twice.tsv")
    assert "twice.tsv, line 3: the id 'x' is already on line 1" in message
    (tmp_path / "empty.txt").write_text("one\n\nthree\n \n")
    message = refused(capsys, clip, tmp_path / "empty", "--captions", tmp_path / "empty.txt")
    assert f"2 of 4 inputs of {tmp_path}/empty.txt cannot be read" in message
    assert "\n  1: line 2: the caption is empty\n  3: line 4: the caption is empty" in message
    (tmp_path / "odd.tsv").write_text("x\tone\na \ttwo\n")
    message = refused(capsys, clip, tmp_path / "odd", "--captions", tmp_path / "odd.tsv")
    assert "odd.tsv, line 2: the id 'a ' has a line break or outer spaces" in message


def test_images_with_odd_names(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad\x1b[31m.png").write_bytes(b"")
    os.mkfifo(tmp_path / "photos/pipe.png")
    message = refused(capsys, clip, tmp_path / "out", "--images", tmp_path / "photos")
    assert "\n  bad\\x1b[31m.png: is not an image in a known format\n  pipe.png: is not an ordinary file" in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--machines", 2, "--machine", 2], "--machine must be 0 to 1"),
        (["--root", "."], "--root is the folder of a list's relative paths"),
        (["--dtype", "bfloat16"], "needs a GPU"),
        (["--device", "toaster"], "torch has no such device"),
        (["--model", "no/such/model"], "not found"),
    ],
)
def test_contradictions_are_refused(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[Any], sentence: str
) -> None:
    message = refused(capsys, clip, tmp_path / "out", "--images", photos, *arguments)
    assert sentence in message
    assert message.count("\n") == 1


def test_as_a_console_script(
    clip: Path,
    photos: Path,
    unbroken: Path,
    tmp_path: Path,
    fairseq_cli: Callable[..., Any],
) -> None:
    small = ["--batch-size", 2, "--shard-rows", 3, "--workers", 1]
    result = fairseq_cli("mclip-features", "--model", clip, "--images", photos, "--output", tmp_path / "out", *small)
    assert f"{NUMBER} rows of 16 columns, 0 skipped" in result.stdout
    assert "DEBUG" not in result.stderr.replace("DEBUG:mclip_fairseq.compat", "")
    assert content(tmp_path / "out") == content(unbroken)
