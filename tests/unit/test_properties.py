"""What must hold for any input: permutation, scaling and duplication of losses, gathers, samplers, metrics, parsers."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mclip_fairseq.data.captions import read_caption_ids
from mclip_fairseq.data.sampling import TemperatureSampledDataset, draw_rows, temperature_sizes
from mclip_fairseq.encoding.bulk import read_caption_list
from mclip_fairseq.encoding.captions import read_language_captions
from mclip_fairseq.evaluation import mean_rank_variance, retrieval_metrics
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks
from mclip_fairseq.losses import (
    chunked_linear_label_smoothed_nll,
    label_smoothed_nll,
    symmetric_info_nce,
)
from mclip_fairseq.storage.feature_files import encode_ids
from mclip_fairseq.storage.files import read_lines
from tests.random_batches import batch, few, generator, same, seeds

# ------------------------------------------------------------------------------------------ losses


@few
@given(seeds, st.integers(1, 9), st.floats(0.1, 50), st.sampled_from(["mean", "sum"]))
def test_a_loss_does_not_depend_on_the_order_of_a_batch_or_its_sides(
    seed: int, rows: int, scale: float, reduction: str
) -> None:
    x, y, ids = batch(seed, rows)
    order = torch.randperm(rows, generator=generator(seed))
    loss = symmetric_info_nce(x, y, scale, same(ids), reduction)
    shuffled = symmetric_info_nce(x[order], y[order], scale, same(ids[order]), reduction)
    torch.testing.assert_close(loss, shuffled, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, symmetric_info_nce(y, x, scale, same(ids), reduction), rtol=1e-10, atol=1e-12)


@few
@given(seeds, st.integers(1, 9), st.floats(0.1, 20), st.floats(0.1, 5))
def test_a_factor_of_a_side_is_a_factor_of_the_scale(seed: int, rows: int, scale: float, factor: float) -> None:
    x, y, _ = batch(seed, rows)
    loss = symmetric_info_nce(x, y, scale * factor)
    torch.testing.assert_close(symmetric_info_nce(x * factor, y, scale), loss, rtol=1e-9, atol=1e-12)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(seed), dtype=torch.float64))[0]
    torch.testing.assert_close(symmetric_info_nce(x @ turn, y @ turn, scale * factor), loss, rtol=1e-9, atol=1e-10)


@few
@given(seeds, st.integers(1, 6), st.integers(2, 4), st.floats(0.1, 20))
def test_a_batch_given_several_times_costs_the_logarithm_more(seed: int, rows: int, times: int, scale: float) -> None:
    x, y, _ = batch(seed, rows)
    ids = torch.arange(rows)
    loss = symmetric_info_nce(x, y, scale)
    repeated = symmetric_info_nce(x.repeat(times, 1), y.repeat(times, 1), scale, same(ids.repeat(times)))
    torch.testing.assert_close(repeated, loss + math.log(times), rtol=1e-10, atol=1e-10)


@few
@given(seeds, st.integers(1, 7), st.integers(2, 9), st.floats(0, 0.9), st.sampled_from(["fairseq", "uniform"]))
def test_label_smoothing(seed: int, rows: int, classes: int, epsilon: float, kind: str) -> None:
    random = generator(seed)
    features = torch.randn(rows, 4, generator=random, dtype=torch.float64)
    weight = torch.randn(classes, 4, generator=random, dtype=torch.float64)
    target = torch.randint(0, classes, (rows,), generator=random)
    order = torch.randperm(rows, generator=random)
    logits = features @ weight.T
    loss = torch.stack(label_smoothed_nll(logits, target, epsilon, -1, kind))

    def close(found: tuple[Tensor, Tensor], expected: Tensor) -> None:
        torch.testing.assert_close(torch.stack(found), expected, rtol=1e-9, atol=1e-10)

    close(label_smoothed_nll(logits[order], target[order], epsilon, -1, kind), loss)
    close(label_smoothed_nll(logits + 3.0, target, epsilon, -1, kind), loss)  # a softmax knows no offset
    close(label_smoothed_nll(logits.repeat(3, 1), target.repeat(3), epsilon, -1, kind), 3 * loss)
    ignored = torch.cat([target, torch.full_like(target, -1)])
    close(label_smoothed_nll(logits.repeat(2, 1), ignored, epsilon, -1, kind), loss)
    for chunk in (1, 2, rows):
        close(chunked_linear_label_smoothed_nll(features, weight, target, epsilon, -1, kind, chunk), loss)


# ------------------------------------------------------------------------------------------ samplers

part_sizes = st.lists(st.integers(0, 5000), min_size=1, max_size=8).filter(any)


@given(part_sizes, st.floats(0.5, 10), st.randoms(use_true_random=False))
def test_draws_follow_the_sizes_and_not_their_order(sizes: list[int], temperature: float, random: Any) -> None:
    drawn = temperature_sizes(sizes, temperature)
    order = list(range(len(sizes)))
    random.shuffle(order)
    assert temperature_sizes([sizes[place] for place in order], temperature).tolist() == drawn[order].tolist()
    assert abs(int(drawn.sum()) - sum(sizes)) <= len(sizes)  # each is rounded, and none that has samples gets none
    assert all((size == 0) == (count == 0) for size, count in zip(sizes, drawn, strict=True))
    ranked = sorted(range(len(sizes)), key=lambda place: sizes[place])
    assert sorted(drawn.tolist()) == drawn[ranked].tolist()
    assert temperature_sizes(sizes, 1.0).tolist() == sizes


@given(part_sizes, st.floats(1, 10), st.integers(2, 50))
def test_a_larger_corpus_of_the_same_kind_is_drawn_alike(sizes: list[int], temperature: float, factor: int) -> None:
    drawn = temperature_sizes(sizes, temperature).astype(float)
    larger = temperature_sizes([factor * size for size in sizes], temperature)
    assert np.abs(larger - factor * drawn).max() <= factor  # the rounding of a sample
    # Higher temperatures move towards equal shares.
    present = [size for size in sizes if size]
    spread = [np.ptp(temperature_sizes(present, t)) for t in (temperature, 2 * temperature)]
    assert spread[1] <= spread[0] + 1


@given(st.integers(1, 50), st.integers(0, 300), seeds)
def test_no_row_is_drawn_twice_before_another_is_drawn_once(size: int, count: int, seed: int) -> None:
    rows = draw_rows(size, count, np.random.default_rng(seed))
    times = np.bincount(rows, minlength=size)
    assert len(rows) == count
    assert len(times) == size
    assert np.ptp(times) <= 1


class Lengths:
    """A part that consists of lengths."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        return {"id": torch.from_numpy(rows), "length": self.sizes[rows]}


lists_of_lengths = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=25), min_size=1, max_size=4)


@few
@given(lists_of_lengths, st.integers(30, 90), st.integers(1, 9), st.sampled_from([1, 4, 8]), st.booleans())
def test_batches_hold_every_sample_once_and_one_part_each(
    parts: list[list[int]], tokens: int, sentences: int, multiple: int, shuffle: bool
) -> None:
    named = {str(number): Lengths(sizes) for number, sizes in enumerate(parts)}
    dataset = TemperatureSampledDataset(named, temperature=5, seed=1, shuffle=shuffle)
    limits = {"max_tokens": tokens, "max_sentences": sentences, "required_batch_size_multiple": multiple}
    batches = dataset.batch_by_size(dataset.ordered_indices(), **limits)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(dataset)))
    for one in batches:
        assert len(set(dataset.part_of[one].tolist())) == 1
        assert len(one) <= max(sentences, 1)
        assert len(one) * int(dataset.num_tokens_vec(one).max()) <= tokens
    first = dataset.row_of.tolist()
    dataset.set_epoch(2)
    dataset.set_epoch(1)
    assert dataset.row_of.tolist() == first  # an epoch depends on its number alone


# ------------------------------------------------------------------------------------------ metrics


def features(seed: int, captions: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(seed)
    text, image = (torch.randn(number, 6, generator=random, dtype=torch.float64) for number in (captions, images))
    return text, image, torch.randint(0, images, (captions,), generator=random)


@few
@given(seeds, st.integers(1, 12), st.integers(1, 6), st.sampled_from(["strict", "released"]))
def test_recalls_do_not_depend_on_order_or_length(seed: int, captions: int, images: int, protocol: str) -> None:
    text, image, own = features(seed, captions, images)
    random = generator(seed + 1)
    metrics = retrieval_metrics(text, image, own, protocol)
    order, places = torch.randperm(captions, generator=random), torch.randperm(images, generator=random)
    moved = torch.empty_like(places)
    moved[places] = torch.arange(images)
    assert retrieval_metrics(text[order], image[places], moved[own[order]], protocol) == pytest.approx(metrics)
    lengths = torch.rand(captions, 1, generator=random, dtype=torch.float64) + 0.1
    assert retrieval_metrics(text * lengths, image * 7, own, protocol) == pytest.approx(metrics)
    assert all(0 <= value <= 100 for name, value in metrics.items() if name != "ties")


@few
@given(seeds, st.integers(1, 12), st.integers(1, 6))
def test_duplicates_count_against_a_query_and_never_for_it(seed: int, captions: int, images: int) -> None:
    text, image, own = features(seed, captions, images)
    ranks = retrieval_ranks(text, image, own)
    # Every image twice: its copy is a foreign one that ties, and all that were above are above twice.
    doubled = retrieval_ranks(text, image.repeat(2, 1), own)
    assert doubled.t2i.tolist() == (2 * ranks.t2i + 1).tolist()
    assert doubled.t2i_tied.all()
    # A foreign distractor takes nothing away.
    more = retrieval_ranks(text, torch.cat([image, -image[:1]]), own)
    assert (more.t2i >= ranks.t2i).all()
    assert torch.equal(more.i2t, ranks.i2t)
    # Every caption twice: a caption's own copies do not compete, copies of others count again.
    again = retrieval_ranks(text.repeat(2, 1), image, own.repeat(2))
    assert again.t2i.tolist() == ranks.t2i.repeat(2).tolist()
    assert again.i2t.tolist() == (2 * ranks.i2t).tolist()
    released = retrieval_ranks(text, image, own, "released")
    assert (retrieval_ranks(text.repeat(2, 1), image, own.repeat(2), "released").i2t == released.i2t.repeat(2)).all()


@few
@given(seeds, st.integers(1, 6), st.integers(1, 8), st.integers(1, 5), st.integers(-9, 9))
def test_rank_variance(seed: int, languages: int, items: int, factor: int, offset: int) -> None:
    found = torch.randint(0, 100, (languages, items), generator=generator(seed))
    variance = mean_rank_variance(found)
    order = torch.randperm(languages, generator=generator(seed))
    for changed, times in (
        (found[order], 1),
        (found.repeat(3, 1), 1),
        (found.repeat(1, 3), 1),
        (found + offset, 1),
        (found * factor, factor),
    ):
        assert mean_rank_variance(changed) == pytest.approx(times**2 * variance)
        std = mean_rank_variance(found, "std")
        assert mean_rank_variance(changed, "std") == pytest.approx(times * std)


# ------------------------------------------------------------------------------------------ parsers

# What other readers take for the end of a line or of a field, and what they strip.
letters = st.sampled_from("ab ä\t\r\v\f\x00\x1c\x85\u2028\u200f\ufeff🐕")
lines = st.lists(st.text(letters, max_size=20).filter(lambda line: not line.endswith("\r")), max_size=12)
names = st.text(st.sampled_from("abc019.-_/ßي東🐕"), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parsers")


@given(lines, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_lines_come_back(folder: Path, lines: list[str], end: str, closed: bool, zipped: bool) -> None:
    assume(not lines or (lines[0][:1] != "\ufeff" and (closed or lines[-1])))
    data = end.join([*lines, ""] if closed and lines else lines).encode()
    file = folder / ("lines.gz" if zipped else "lines")
    file.write_bytes(gzip.compress(data) if zipped else data)
    assert read_lines(file) == lines


@given(st.lists(st.tuples(names, names), min_size=1, max_size=12), st.booleans())
def test_ids_come_back(folder: Path, pairs: list[tuple[str, str]], both: bool) -> None:
    assume(all("-" not in pair for pair in pairs))
    file = folder / "ids"
    file.write_text("".join("\t".join(pair[: 1 + both]) + "\n" for pair in pairs), encoding="utf-8", newline="")
    image_ids, text_ids = read_caption_ids(file, len(pairs))
    assert image_ids == [pair[0] for pair in pairs]
    assert text_ids == ([pair[1] for pair in pairs] if both else None)
    with pytest.raises(ValueError, match="lines for"):
        read_caption_ids(file, len(pairs) + 1)


@given(st.lists(names, unique=True, max_size=12))
def test_ids_of_features_come_back_and_refuse_a_repetition(folder: Path, ids: list[str]) -> None:
    (folder / "feature_ids").write_bytes(encode_ids(ids))
    assert read_lines(folder / "feature_ids") == ids
    if ids:
        with pytest.raises(ValueError, match="appears twice"):
            encode_ids([*ids, ids[0]])


@given(st.lists(st.tuples(names, names), min_size=1, max_size=9, unique_by=lambda pair: pair[0]))
def test_captions_come_back_in_both_readers(folder: Path, pairs: list[tuple[str, str]]) -> None:
    file = folder / "captions.tsv"
    file.write_text("".join(f"{name}\t{text}\n" for name, text in pairs), encoding="utf-8", newline="")
    assert read_caption_list(file) == pairs
    captions = read_language_captions("en", file)
    assert list(zip(captions.ids, captions.texts, strict=True)) == pairs
    (folder / "twice.tsv").write_bytes(file.read_bytes() * 2)
    with pytest.raises(ValueError, match=f"line {len(pairs) + 1}: the id .* is already on line 1"):
        read_caption_list(folder / "twice.tsv")
    assert len(read_language_captions("en", folder / "twice.tsv").texts) == 2 * len(pairs)  # several of an image
