"""What CCRK draws of its data: masked words with the recorded counts, languages, crops; all by seed, epoch and row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ccrk import clean_caption
from fairseq.data import Dictionary
from PIL import Image

from mclip_fairseq.data.augmentation import OPERATIONS, Augmentation, AugmentedPixels, random_crop
from mclip_fairseq.data.k_parallel import ParallelCaptions
from mclip_fairseq.data.masking import WordMasking, mask_batch
from mclip_fairseq.data.pixels import PixelLoader
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models.vision.swin import SquarePixels
from mclip_fairseq.storage.tar_index import FolderImages
from tests.ccrk_models import fixture_folder

MASK, WORDS = 331, 332


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((fixture_folder(shared_dir) / "ccrk_masking.json").read_text(encoding="utf-8"))
    return loaded


def test_cleaning_gives_the_recorded_strings(shared_dir: Path) -> None:
    cases = json.loads((fixture_folder(shared_dir) / "ccrk_text.json").read_text(encoding="utf-8"))
    assert len(cases) > 30
    for case in cases:
        assert clean_caption(case["input"], case["max_words"]) == case.get("output", ""), case


def test_as_many_tokens_are_masked_as_recorded(recorded: dict[str, Any]) -> None:
    masking, rng = WordMasking(MASK, WORDS), np.random.default_rng(0)
    ends, trials = 0, 100
    for length, facts in recorded["per_length"].items():
        drawn = [masking.positions(int(length), rng) for _ in range(trials)]
        assert {str(len(set(positions))) for positions in drawn} == set(facts["count"])
        assert all(0 not in positions for positions in drawn)
        ends += sum(int(length) - 1 in positions for positions in drawn)
    share = ends / trials / len(recorded["per_length"])
    assert share == pytest.approx(recorded["share_of_sentences_with_last_token_masked"], abs=0.03)


def test_what_masked_tokens_become(recorded: dict[str, Any]) -> None:
    masking, rng = WordMasking(MASK, WORDS), np.random.default_rng(0)
    ids, kinds = np.arange(100, 130), Counter[str]()
    for _ in range(600):
        positions = masking.positions(30, rng)
        hidden = masking.hide(ids, positions, rng)
        untouched = np.setdiff1d(np.arange(30), positions)
        assert (hidden[untouched] == ids[untouched]).all()
        for position in positions:
            new = hidden[position]
            kinds["masked" if new == MASK else "kept" if new == ids[position] else "random"] += 1
    for kind, share in recorded["share"].items():
        assert kinds[kind] / kinds.total() == pytest.approx(share, abs=0.02)


class Pinned:
    """A generator with constant draws, as the recorded ones were pinned."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value

    def integers(self, low: int, high: int) -> int:
        return high - 1

    def permutation(self, values: Any) -> np.ndarray:
        return np.asarray(values)[::-1]


def test_pinned_draws_mask_the_recorded_positions(recorded: dict[str, Any]) -> None:
    masking = WordMasking(MASK, WORDS)
    for case in recorded["pinned"]:
        rng: Any = Pinned(float(case["rand"].partition("=")[2]))
        positions = masking.positions(len(case["tokens_in"]), rng)
        assert positions == sorted(case["masked_pos"]), case
        hidden = masking.hide(np.arange(len(case["tokens_in"])), positions, rng)
        theirs = [old != new for old, new in zip(case["tokens_in"], case["tokens_out"], strict=True)]
        assert (hidden != np.arange(len(hidden))).tolist() == theirs


def test_the_end_can_be_kept() -> None:
    masking, rng = WordMasking(MASK, WORDS, keep_end=True), np.random.default_rng(0)
    for length in range(3, 20):
        for _ in range(50):
            positions = masking.positions(length, rng)
            assert length - 1 not in positions
            assert len(positions) == masking.count(length) >= 1


def test_labels_are_the_hidden_words() -> None:
    tokens = torch.tensor([[0, 11, 12, 13, 14, 2], [0, 21, 2, 1, 1, 1]])
    generators = [np.random.default_rng(seed) for seed in (1, 2)]
    batch = mask_batch(tokens, np.array([6, 3]), WordMasking(MASK, WORDS), generators)
    assert batch["masked_positions"].shape == batch["masked_labels"].shape == (2, 12)
    for row in range(2):
        used = batch["masked_positions"][row] != 0
        assert int(used.sum()) == (2, 1)[row]
        assert torch.equal(batch["masked_labels"][row][used], tokens[row, batch["masked_positions"][row][used]])
        assert (batch["masked_labels"][row][~used] == -100).all()
    assert torch.equal(batch["masked_tokens"][1, 3:], tokens[1, 3:])


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 28, 3), dtype=np.uint8)).save(tmp_path / name)
    return names


def pixels(folder: Path, names: list[str]) -> AugmentedPixels:
    loader = PixelLoader(FolderImages(folder), SquarePixels(16), 10**6, None)
    return AugmentedPixels(names, loader, Augmentation(16, 0.2), seed=3)


def parallel(folder: Path, names: list[str], count: int = 2) -> ParallelCaptions:
    dictionary = Dictionary()
    for number in range(20):
        dictionary.add_symbol(f"w{number}")
    dictionary.add_symbol("<mask>")
    sentences = {}
    for at, lang in enumerate(("zh", "en", "de")):
        ids = [torch.tensor([4 + 4 * at + row, *[9] * row, 2]) for row in range(4)]
        sentences[lang] = FlatTokens.from_sentences(ids, dictionary)
    masking = WordMasking.of(dictionary)
    return ParallelCaptions(sentences, pixels(folder, names), np.arange(4), count, seed=3, masking=masking)


def test_a_row_is_drawn_by_seed_epoch_and_row_alone(tmp_path: Path, images: list[str]) -> None:
    """Whatever batch a row is in, and whatever was read before; another epoch draws again."""
    one, two = parallel(tmp_path, images), parallel(tmp_path, images)
    for data in (one, two):
        data.set_epoch(5)
    whole = one.rows(np.arange(4))
    two.rows(np.array([3, 1]))
    part = two.rows(np.array([2, 0]))
    assert torch.equal(part["languages"], whole["languages"][[2, 0]])
    assert torch.equal(part["net_input"]["pixel_values"], whole["net_input"]["pixel_values"][[2, 0]])
    rows = [4, 5, 0, 1]
    length = part["net_input"]["text_tokens"].shape[1]
    for name in ("text_tokens", "masked_tokens"):
        assert torch.equal(part["net_input"][name], whole["net_input"][name][rows, :length])
    assert torch.equal(part["net_input"]["masked_labels"], whole["net_input"]["masked_labels"][rows])
    two.set_epoch(6)
    again = two.rows(np.arange(4))
    assert not torch.equal(again["net_input"]["pixel_values"], whole["net_input"]["pixel_values"])


def test_k_of_l_languages_in_list_order_with_their_own_captions(tmp_path: Path, images: list[str]) -> None:
    data = parallel(tmp_path, images)
    seen = Counter[int]()
    for epoch in range(1, 60):
        data.set_epoch(epoch)
        batch = data.rows(np.arange(4))
        languages = batch["languages"]
        assert (languages[:, 0] < languages[:, 1]).all()
        first = 4 + 4 * languages.ravel() + torch.arange(4).repeat_interleave(2)
        assert torch.equal(batch["net_input"]["text_tokens"][:, 1], first)
        seen.update(languages.ravel().tolist())
    assert batch["captions"] == 2
    assert (batch["nsentences"], batch["ntokens"]) == (4, 2 * (3 + 4 + 5 + 6))
    assert all(count / seen.total() == pytest.approx(1 / 3, abs=0.05) for count in seen.values())
    assert len(parallel(tmp_path, images, count=3).rows(np.array([1]))["net_input"]["text_tokens"]) == 3


def test_an_image_that_cannot_be_read_is_an_error_without_a_budget(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / images[1]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png"):
        parallel(tmp_path, images).rows(np.arange(4))


def test_crops_show_at_least_the_area_asked_for() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((60, 40), (40, 60), (64, 64)):
        areas = []
        for _ in range(200):
            left, top, right, bottom = random_crop(width, height, 0.5, rng)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            areas.append((right - left) * (bottom - top) / width / height)
        assert min(areas) > 0.45
        assert max(areas) > 0.75
    assert random_crop(100, 2, 1.0, rng) == (48, 0, 51, 2)  # no box of these ratios: the middle


def test_every_operation_keeps_size_and_mode_and_does_something() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(60, 180, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(grey)
    changed = [not np.array_equal(np.asarray(operation(image, 0.7)), grey) for operation in OPERATIONS]
    assert changed == [False] + [True] * 9
    assert all(operation(image, -0.7).size == (16, 16) for operation in OPERATIONS)
    shifted = np.asarray(OPERATIONS[7](image, 0.7))
    assert (shifted[:, -7:] == 128).all()  # seven pixels, filled with grey
    assert np.array_equal(shifted[:, :9], grey[:, 7:])
    bright = np.asarray(OPERATIONS[3](image, 0.7), dtype=float)
    assert bright.mean() / grey.mean() == pytest.approx(1.36, abs=0.01)


def test_without_operations_an_image_is_only_cropped_and_flipped() -> None:
    image = Image.fromarray(np.full((30, 30, 3), 77, dtype=np.uint8))
    for seed in range(10):
        out = Augmentation(8, 0.5, operations=0)(image, np.random.default_rng(seed))
        assert (np.asarray(out) == 77).all()
