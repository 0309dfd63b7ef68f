"""Every hostile input of the corpus is read as a viewer would, or refused with the sentence listed with it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from PIL import Image

from mclip_fairseq import inference
from mclip_fairseq.cli import evaluate as evaluate_cli
from mclip_fairseq.cli import features as features_cli
from mclip_fairseq.data import parallel, skips
from mclip_fairseq.data.captions import read_caption_ids
from mclip_fairseq.data.parallel import shifted_blocks
from mclip_fairseq.data.skips import SkipList
from mclip_fairseq.data.tokens import FlatTokens, load_dictionary
from mclip_fairseq.encoding.captions import read_language_captions
from mclip_fairseq.encoding.inputs import to_pil
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.features import FeatureStore, write_features
from mclip_fairseq.storage.images import MAX_RATIO, PIXEL_CEILING, ImageError, find_images, load_image
from mclip_fairseq.tasks.caption_files import check_same_teacher
from tests import hostile, hostile_images
from tests.tiny_models import tiny_clip_directory


def refused(message: str, call: Callable[[], object], error: type[Exception] = ValueError) -> str:
    """Call, and expect one sentence that matches."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert re.search(message, said), said
    assert said.isprintable()
    return said


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip_directory(tmp_path_factory.mktemp("model") / "clip")


# ------------------------------------------------------------------------------------------ images


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", hostile_images.BAD_IMAGES)
def test_bad_images(name: str, tmp_path: Path) -> None:
    file, make, message = hostile_images.BAD_IMAGES[name]
    (tmp_path / file).write_bytes(make())
    said = refused(message, lambda: load_image(tmp_path / file), ImageError)
    assert said.startswith(f"{tmp_path / file}: ")


@pytest.mark.parametrize("name", hostile_images.GOOD_IMAGES)
def test_unusual_images_show_what_a_viewer_shows(name: str, tmp_path: Path) -> None:
    make, expected = hostile_images.GOOD_IMAGES[name]
    (tmp_path / "x").write_bytes(make())
    image = load_image(tmp_path / "x")
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == [[list(pixel) for pixel in row] for row in expected]
    # An image that is open already gives the same pixels as its file.
    with Image.open(tmp_path / "x") as opened:
        assert np.array_equal(np.asarray(to_pil(opened)), np.asarray(image))


def test_a_jpeg_in_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    assert np.abs(np.asarray(load_image(tmp_path / "x.jpg")).astype(int) - hostile_images.RED).max() <= 3


def test_nothing_is_decoded_before_the_header_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(hostile_images.png(100, 100))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    refused("has 100 x 100 pixels, more than 9999", lambda: load_image(tmp_path / "x.png", 9999))


def test_the_negative_control_a_larger_limit_reads_it(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    refused("more than 9999", lambda: load_image(tmp_path / "x.png", 9999))
    assert load_image(tmp_path / "x.png", 10_000).size == (100, 100)
    Image.new("L", (MAX_RATIO, 1)).save(tmp_path / "line.png")
    assert load_image(tmp_path / "line.png").size == (MAX_RATIO, 1)


def test_pixel_limits_are_options(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for size in (20, 40):
        Image.new("RGB", (size, size)).save(photos / f"{size}.png")
    command = ["--model", str(clip), "--images", str(photos), "--workers", "0", "--device", "cpu", "--output"]
    assert features_cli.main([*command, str(tmp_path / "a"), "--max-pixels", "400", "--skip-budget", "1"]) == 0
    assert FeatureStore.open(tmp_path / "a").ids == ["20.png"]
    listed = (tmp_path / "a" / "skipped.tsv").read_text()
    assert listed.startswith("40.png\thas 40 x 40 pixels, more than 400;")
    assert features_cli.main([*command, str(tmp_path / "b"), "--max-pixels", str(PIXEL_CEILING + 1)]) == 2
    assert "--max-pixels is" in capsys.readouterr().err
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    refused("40.png: has 40 x 40 pixels, more than 400", lambda: model.encode_image(photos / "40.png", max_pixels=400))
    assert model.encode_image(photos / "20.png", max_pixels=400).shape == (1, 16)


def test_arrays_that_are_no_images() -> None:
    refused(r"float64 and shape \(4, 4, 3\) is not an image; give", lambda: to_pil(np.zeros((4, 4, 3))))


# ------------------------------------------------------------------------------------------ captions


def captions_file(folder: Path, name: str) -> Path:
    """A file whose second line is the hostile one."""
    file = folder / "captions.txt"
    file.write_bytes(b"a dog\n" + hostile.CAPTIONS[name].line + b"\na cat\n")
    return file


@pytest.mark.parametrize("name", hostile.CAPTIONS)
def test_captions_for_features(
    name: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = DualEncoderTeacher.from_pretrained(clip)
    monkeypatch.setattr(DualEncoderTeacher, "from_pretrained", lambda *arguments: teacher)
    file, message = captions_file(tmp_path, name), hostile.CAPTIONS[name].features
    command = ["--model", str(clip), "--captions", str(file), "--device", "cpu", "--output"]
    status = features_cli.main([*command, str(tmp_path / "out")])
    if message is None:
        assert status == 0
        store = FeatureStore.open(tmp_path / "out")
        assert store.ids == ["0", "1", "2"]
    else:
        assert status == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out" / "manifest.json").exists()
    if message == "the caption is empty":
        assert features_cli.main([*command, str(tmp_path / "skipped"), "--skip-budget", "1"]) == 0
        assert FeatureStore.open(tmp_path / "skipped").ids == ["0", "2"]
        assert (tmp_path / "skipped" / "skipped.tsv").read_text() == "1\tline 2: the caption is empty\n"


@pytest.mark.parametrize("name", hostile.CAPTIONS)
def test_captions_for_evaluation_are_never_left_out(name: str, tmp_path: Path) -> None:
    file, message = captions_file(tmp_path, name), hostile.CAPTIONS[name].evaluation
    (tmp_path / "ids").write_text("a\nb\nc\n")
    if message is not None:
        refused(message, lambda: read_language_captions("en", file, tmp_path / "ids"))
        return
    captions = read_language_captions("en", file, tmp_path / "ids")
    assert len(captions.texts) == len(captions.ids) == 3
    assert captions.texts[1].encode() == hostile.CAPTIONS[name].line.removesuffix(b"\r")


def test_evaluation_has_no_budget(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate_cli.main(["--model", "m", "--captions", "en=x", "--images", "y", "--skip-budget", "1"])
    assert "--skip-budget" in capsys.readouterr().err
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "en").write_text("a\nb\nc\n")
    (tmp_path / "ids").write_text("0\n1\n2\n")
    command = ["--model", str(clip), "--captions", f"en={tmp_path / 'en'}", "--ids", str(tmp_path / "ids")]
    command += ["--images", str(tmp_path), "--device", "cpu"]
    assert evaluate_cli.main(command) == 0
    assert evaluate_cli.main([*command, "--max-pixels", "63"]) == 2
    assert "0.png: has 8 x 8 pixels, more than 63" in capsys.readouterr().err
    (tmp_path / "1.png").write_bytes(b"<html>")
    assert evaluate_cli.main(command) == 2
    assert "1.png: is not an image in a known format" in capsys.readouterr().err


def test_texts_are_cut_and_never_crash(clip: Path) -> None:
    model = MultilingualCLIP.from_pretrained(clip, device="cpu")
    texts = [caption.line.decode() for caption in hostile.CAPTIONS.values() if "UTF-8" not in str(caption.features)]
    encoded = model.encode_text(texts)
    assert encoded.shape == (len(texts), model.dim)
    assert encoded.isfinite().all()
    assert inference.MAX_PIXELS <= PIXEL_CEILING


# ------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("name", hostile.ID_LISTS)
def test_ids_of_captions(name: str, tmp_path: Path) -> None:
    content, message = hostile.ID_LISTS[name]
    (tmp_path / "ids").write_bytes(content)
    refused(message, lambda: read_caption_ids(tmp_path / "ids", 3))


@pytest.mark.parametrize("name", hostile.IMAGE_LISTS)
def test_lists_of_images(name: str, tmp_path: Path) -> None:
    content, message = hostile.IMAGE_LISTS[name]
    (tmp_path / "list").write_bytes(content)
    refused(message, lambda: find_images(None, tmp_path / "list"))


def test_ids_that_are_unknown(tmp_path: Path) -> None:
    store = features(tmp_path)
    refused("has no features for 2 of 3 ids, the first are 'x', 'y'", lambda: store.rows(["x", "id1", "y"]))
    assert store.has(["x", "id1", "y"]).tolist() == [False, True, False]


@pytest.mark.parametrize("image_id", ["a\0b.jpg", "x" * 5000 + ".jpg", "."])
def test_ids_that_are_no_file_names(image_id: str, tmp_path: Path) -> None:
    refused(
        "cannot be decoded|does not exist|is not an ordinary file",
        lambda: load_image(tmp_path / image_id),
        ImageError,
    )


# ------------------------------------------------------------------------------------------ features


def features(folder: Path, **options: Any) -> FeatureStore:
    return write_features(
        folder, [f"id{n}" for n in range(10)], np.ones((10, 3), np.float32), **{"model": "clip", **options},
        normalized=False, shard_rows=4,
    )  # fmt: skip


@pytest.mark.parametrize("name", hostile.FEATURES)
def test_features(name: str, tmp_path: Path) -> None:
    damage, message = hostile.FEATURES[name]
    features(tmp_path)
    FeatureStore.open(tmp_path)
    damage(tmp_path)
    refused(message, lambda: FeatureStore.open(tmp_path))
    assert not (tmp_path / "trap").exists()


def test_features_of_another_model(tmp_path: Path) -> None:
    features(tmp_path / "image")
    features(tmp_path / "text", modality="text", model="siglip")
    refused(
        "both must come from one teacher",
        lambda: check_same_teacher(
            *(with_sha256(FeatureStore.open(tmp_path / name), name) for name in ("image", "text"))
        ),
    )
    refused("differ in modality", lambda: FeatureStore.open_all([tmp_path / "image", tmp_path / "text"]))


def with_sha256(store: FeatureStore, value: str) -> FeatureStore:
    store.manifest["teacher"]["sha256"] = value
    return store


def test_large_finite_values_are_no_false_alarm(tmp_path: Path) -> None:
    """The sum of a row overflows, its values do not."""
    write_features(tmp_path, ["a"], np.full((1, 8), 3e38, np.float32), model="x", normalized=False)
    assert FeatureStore.open(tmp_path).take([0])[0, 0] == np.float32(3e38)


# ------------------------------------------------------------------------------------------ dictionaries, indexes


@pytest.mark.parametrize("name", hostile.DICTIONARIES)
def test_dictionaries(name: str, tmp_path: Path) -> None:
    content, message = hostile.DICTIONARIES[name]
    (tmp_path / "dict.txt").write_bytes(content)
    assert refused(re.escape(message), lambda: load_dictionary(tmp_path)).startswith(f"{tmp_path / 'dict.txt'}: ")


@pytest.fixture
def dictionary() -> Dictionary:
    dictionary = Dictionary()
    for letter in "abcdef":
        dictionary.add_symbol(letter)
    return dictionary


@pytest.mark.parametrize("name", hostile.INDEXES)
def test_indexes(name: str, tmp_path: Path, dictionary: Dictionary) -> None:
    index, tokens, message = hostile.INDEXES[name]
    (tmp_path / "x.idx").write_bytes(index)
    (tmp_path / "x.bin").write_bytes(tokens)
    refused(message, lambda: FlatTokens.from_prefix(tmp_path / "x", dictionary))


@pytest.mark.parametrize("kind", ["mmap", "cached"])
def test_both_formats_of_fairseq_are_read(kind: str, tmp_path: Path, dictionary: Dictionary) -> None:
    from fairseq.data.indexed_dataset import make_builder

    sentences = [[4, 5, 2], [2], [6, 2]]
    builder = make_builder(str(tmp_path / "x.bin"), kind, vocab_size=10)
    for sentence in sentences:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(str(tmp_path / "x.idx"))
    flat = FlatTokens.from_prefix(tmp_path / "x", dictionary)
    assert [flat.batch(np.array([row]))[0].tolist() for row in range(3)] == [[0, *sentence] for sentence in sentences]
    assert flat.select(np.array([2, 0])).batch(np.array([0, 1])).tolist() == [[0, 6, 2, 1], [0, 4, 5, 2]]


# ------------------------------------------------------------------------------------------ parallel files


def lengths(pairs: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of sentences and of their translations."""
    rng = np.random.default_rng(seed)
    source = np.exp(rng.normal(3, 0.5, pairs))
    target = 1.3 * source * np.exp(rng.normal(0, noise, pairs))
    return source.astype(int) + 2, target.astype(int) + 2


@pytest.mark.parametrize("noise", [0.1, 0.25])
@pytest.mark.parametrize("pairs", [100, 5000])
@pytest.mark.parametrize("lost", ["source", "target"])
def test_a_lost_line_is_noticed(noise: float, pairs: int, lost: str) -> None:
    source, target = lengths(pairs, noise)
    assert shifted_blocks(source, target) == []
    place = pairs // 2 if pairs > 1000 else 0
    short, whole = (source, target) if lost == "source" else (target, source)
    short, whole = np.delete(short, place), whole[:-1]
    found = shifted_blocks(*((short, whole) if lost == "source" else (whole, short)))
    assert {shift for *_, shift in found} == {-1 if lost == "source" else 1}
    # The first block that is off does not lie before the lost line, and blocks behind it are all found.
    behind = [block for block in found if block[0] > place]
    assert found[0][1] > place
    assert len(behind) == (10 if pairs > 1000 else 1 if pairs < 110 else len(behind))


def test_aligned_text_is_no_false_alarm() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        assert shifted_blocks(*lengths(rng.randint(60, 5000), rng.uniform(0.05, 0.5), seed)) == []
    same = np.full(5000, 7)
    assert shifted_blocks(same, same) == []
    assert shifted_blocks(same[:20], same[:20]) == []
    assert parallel.BLOCKS * parallel.BLOCK_LINES <= 5000


# ------------------------------------------------------------------------------------------ the budget


@pytest.mark.parametrize("locked", [True, False])
def test_those_who_skip_at_once_share_the_budget(locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight add an item each to a budget of three; without the lock, the negative control, all of them may."""
    everyone = threading.Barrier(8)
    if not locked:
        monkeypatch.setattr(skips.locks, "take", lambda *arguments: None)
    listed = SkipList.listed

    def together(self: SkipList) -> list[str]:
        found = listed(self)
        time.sleep(0.01) if locked else everyone.wait()
        return found

    monkeypatch.setattr(SkipList, "listed", together)

    def add(number: int) -> bool:
        try:
            SkipList(tmp_path / "skipped.tsv", 3).add([(f"item{number}", "gone")])
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        allowed = sum(pool.map(add, range(8)))
    assert len((tmp_path / "skipped.tsv").read_text().splitlines()) == allowed
    assert (allowed == 3) == locked


def test_the_budget_is_shared_and_remembered(tmp_path: Path) -> None:
    file = tmp_path / "run" / "skipped.tsv"
    one, other = SkipList(file, 3), SkipList(file, 3)
    one.add([])
    assert not file.exists()
    one.add([("a", "broken\nin two"), ("b", "gone")])
    other.add([("b", "gone"), ("c", "gone")])
    one.add([("c", "gone")])
    assert file.read_text() == "a\tbroken in two\nb\tgone\nc\tgone\n"
    refused(
        "d: no more; with the 3 in .*skipped.tsv that is more than --skip-budget 3", lambda: one.add([("d", "no more")])
    )
    refused("d: no more", lambda: SkipList(file, 3).add([("d", "no more")]))
    SkipList(file, 4).add([("d", "no more")])
    refused(
        "x: gone; fix it, remove it, or skip it with --skip-budget",
        lambda: SkipList(file, 0).add([("x", "gone")]),
    )
    torn = tmp_path / "torn.tsv"
    torn.write_text("a\tbrok")  # the process that wrote it was killed
    SkipList(torn, 2).add([("b\x1b[31m", "gone")])
    assert torn.read_text() == "a\tbrok\nb\\x1b[31m\tgone\n"
    refused(r"c\\x1b\[31m: gone; with the 2 in", lambda: SkipList(torn, 2).add([("c\x1b[31m", "gone")]))
    refused("--skip-budget is -1", lambda: SkipList(file, -1))
