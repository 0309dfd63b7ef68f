"""Ranks, recalls and mean rank variance against hand-made answers, slow obvious code and recorded peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mclip_fairseq.evaluation.metrics import retrieval
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_metrics, retrieval_ranks, top_images
from mclip_fairseq.evaluation.metrics.variance import mean_rank_variance

KEYS = ["t2i_R@1", "t2i_R@5", "t2i_R@10", "i2t_R@1", "i2t_R@5", "i2t_R@10", "mean_recall", "ties"]
UNTIED = ["k5", "k1", "kvar"]
TIED = ["dup5", "sign5"]


@pytest.fixture
def fixture(shared_dir: Path) -> dict[str, np.ndarray]:
    with np.load(shared_dir / "fixtures" / "retrieval_metrics.npz", allow_pickle=False) as archive:
        return dict(archive)


def variant(fixture: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(fixture[f"{name}_{part}"] for part in ("text_features", "image_features", "txt2img"))  # type: ignore[return-value]


def recalls(metrics: dict[str, float], direction: str) -> list[float]:
    return [metrics[f"{direction}_R@{k}"] for k in (1, 5, 10)]


def from_scores(scores: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit text and image vectors whose cosines are the given ones (each row of scores shorter than 1)."""
    wanted = torch.tensor(scores, dtype=torch.float64)
    remainder = (1 - wanted.square().sum(1)).sqrt()
    text = torch.cat([wanted, remainder[:, None]], dim=1)
    images = torch.eye(wanted.shape[1], wanted.shape[1] + 1, dtype=torch.float64)
    return text, images


def slow_ranks(text: np.ndarray, image: np.ndarray, own: list[int], protocol: str) -> tuple[list[int], list[int]]:
    """Ranks by plain loops over exact integer products of unit-norm rows."""
    scores = [[float(np.dot(t, i)) for i in image] for t in text]
    captioned = sorted(set(own))
    gallery = range(len(image)) if protocol == "strict" else captioned
    t2i = [sum(scores[t][i] >= scores[t][own[t]] for i in gallery if i != own[t]) for t in range(len(text))]
    i2t = []
    for i in captioned if protocol == "strict" else own:
        best = max(scores[t][i] for t in range(len(text)) if own[t] == i)
        winners = [own[t] for t in range(len(text)) if own[t] != i and scores[t][i] >= best]
        i2t.append(len(winners) if protocol == "strict" else len(set(winners)))
    return t2i, i2t


def test_hand_made_several_captions_per_image() -> None:
    # rows: captions of images 0 0 0 1 1 2 3 3; columns: images
    scores = [
        [0.50, 0.10, 0.00, 0.00],  # rank 0
        [0.10, 0.20, 0.00, 0.00],  # rank 1
        [0.10, 0.20, 0.30, 0.40],  # rank 3
        [0.60, 0.30, 0.00, 0.00],  # rank 1
        [0.00, 0.45, 0.00, 0.10],  # rank 0
        [0.00, 0.50, 0.20, 0.10],  # rank 1
        [0.55, 0.00, 0.25, 0.05],  # rank 2
        [0.00, 0.00, 0.00, 0.60],  # rank 0
    ]
    text, image = from_scores(scores)
    own = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    ranks = retrieval_ranks(text, image, own)
    assert ranks.t2i.tolist() == [0, 1, 3, 1, 0, 1, 2, 0]
    # best own captions: .50 (below .60, .55), .45 (below .50), .20 (below .30, .25), .60
    assert ranks.i2t.tolist() == [2, 1, 2, 0]
    assert ranks.i2t_images.tolist() == [0, 1, 2, 3]
    metrics = retrieval_metrics(text, image, own)
    assert list(metrics) == KEYS
    assert recalls(metrics, "t2i") == [37.5, 100, 100]
    assert recalls(metrics, "i2t") == [25, 100, 100]
    assert metrics["mean_recall"] == pytest.approx((37.5 + 25 + 400) / 6)
    assert metrics["ties"] == 0


def test_hand_made_released_counts_distinct_images_and_repeats_image_queries() -> None:
    # image 0 owns one caption, image 1 three that all beat it at image 0
    text, image = from_scores([[0.3, 0.1], [0.5, 0.6], [0.6, 0.7], [0.4, 0.5]])
    own = [0, 1, 1, 1]
    assert retrieval_ranks(text, image, own).i2t.tolist() == [3, 0]
    released = retrieval_ranks(text, image, own, protocol="released")
    assert released.i2t.tolist() == [1, 0, 0, 0]
    assert released.i2t_images.tolist() == own
    assert retrieval_metrics(text, image, own, protocol="released")["i2t_R@1"] == 75
    assert retrieval_metrics(text, image, own)["i2t_R@1"] == 50


def test_hand_made_one_caption_per_image_with_ties() -> None:
    scores = [
        [0.5, 0.5, 0.0, 0.0],  # ties with image 1: rank 1
        [0.0, 0.3, 0.0, 0.0],  # rank 0
        [0.2, 0.2, 0.2, 0.2],  # ties with three: rank 3
        [0.0, 0.3, 0.0, 0.4],  # rank 0
    ]
    text, image = from_scores(scores)
    ranks = retrieval_ranks(text, image, [0, 1, 2, 3])
    assert ranks.t2i.tolist() == [1, 0, 3, 0]
    assert ranks.t2i_tied.tolist() == [True, False, True, False]
    assert ranks.i2t.tolist() == [0, 2, 0, 0]  # image 1: .5 above, .3 tied
    assert ranks.i2t_tied.tolist() == [False, True, False, False]
    metrics = retrieval_metrics(text, image, [0, 1, 2, 3])
    assert metrics["t2i_R@1"] == 50
    assert metrics["i2t_R@1"] == 75
    assert metrics["ties"] == 3


def test_ties_among_own_captions_do_not_count() -> None:
    text, image = from_scores([[0.5, 0.1], [0.5, 0.1], [0.1, 0.4]])
    ranks = retrieval_ranks(text, image, [0, 0, 1])
    assert ranks.i2t.tolist() == [0, 0]
    assert ranks.ties == 0


def test_a_collapsed_model_scores_zero() -> None:
    metrics = retrieval_metrics(torch.ones(40, 8), torch.ones(40, 8), torch.arange(40))
    assert [metrics[key] for key in KEYS] == [0, 0, 0, 0, 0, 0, 0, 80]


def test_equal_directions_of_different_length_tie() -> None:
    image = torch.tensor([[0.3, 0.1, 0.7], [0.9, 0.3, 2.1]], dtype=torch.float64)
    assert retrieval_ranks(torch.rand(2, 3), image, [0, 1]).t2i.tolist() == [1, 1]


def test_images_without_caption_are_distractors_of_strict_only() -> None:
    text, image = from_scores([[0.1, 0.5, 0.0], [0.0, 0.2, 0.6]])
    strict = retrieval_ranks(text, image, [0, 2])
    assert strict.t2i.tolist() == [1, 0]
    assert strict.i2t_images.tolist() == [0, 2]
    assert strict.i2t.tolist() == [0, 0]
    released = retrieval_ranks(text, image, [0, 2], protocol="released")
    assert released.t2i.tolist() == [0, 0]
    assert released.i2t_images.tolist() == [0, 2]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, np.float16, np.float64])
def test_any_float_type_is_accepted(kind: torch.dtype | type) -> None:
    text, image = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    if isinstance(kind, torch.dtype):
        ranks = retrieval_ranks(text.to(kind), image.to(kind), [1, 0])
    else:
        ranks = retrieval_ranks(text.numpy().astype(kind), image.numpy().astype(kind), np.array([1, 0]))
    assert ranks.t2i.tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_plain_loops(data: st.DataObject) -> None:
    """Sign features of 16 dimensions: every product is exact, ties abound."""
    images = data.draw(st.integers(1, 7))
    own = data.draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=14))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    text, image = (np.sign(rng.standard_normal((n, 4))).repeat(4, axis=1) / 4 for n in (len(own), images))
    block = data.draw(st.sampled_from([1, 13, 1 << 20]))
    for protocol in ("strict", "released"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "BLOCK_SCORES", block)
            ranks = retrieval_ranks(text, image, own, protocol)
        assert (ranks.t2i.tolist(), ranks.i2t.tolist()) == slow_ranks(text, image, own, protocol)


@pytest.mark.parametrize("name", UNTIED)
def test_strict_equals_the_peers(fixture: dict[str, np.ndarray], name: str) -> None:
    metrics = retrieval_metrics(*variant(fixture, name))
    for direction, long in (("t2i", "text2image"), ("i2t", "image2text")):
        for peer in ("clipbenchmark", "bigvision"):
            assert recalls(metrics, direction) == pytest.approx(100 * fixture[f"{name}_{peer}_{long}"], rel=1e-5)
        prefix = "img" if direction == "t2i" else "txt"
        assert recalls(metrics, direction) == pytest.approx(
            [float(fixture[f"{name}_ccrk_{prefix}_r{k}"]) for k in (1, 5, 10)], rel=1e-5
        )
    assert metrics["mean_recall"] == pytest.approx(float(fixture[f"{name}_ccrk_r_mean"]), rel=1e-5)
    assert metrics["ties"] == 0


@pytest.mark.parametrize("name", UNTIED + TIED)
def test_strict_ranks_are_the_pessimistic_bounds(fixture: dict[str, np.ndarray], name: str) -> None:
    ranks = retrieval_ranks(*variant(fixture, name))
    ties = 0
    for values, tied, long in (
        (ranks.t2i, ranks.t2i_tied, "text2image"),
        (ranks.i2t, ranks.i2t_tied, "image2text"),
    ):
        pessimistic = fixture[f"{name}_rank_{long}_pessimistic"]
        optimistic = fixture[f"{name}_rank_{long}_optimistic"]
        assert values.tolist() == pessimistic.tolist()
        assert tied.tolist() == (pessimistic != optimistic).tolist()
        ties += int((pessimistic != optimistic).sum())
        if name in UNTIED:
            assert values.tolist() == fixture[f"{name}_ccrk_rank_{long}"].tolist()
    assert ranks.ties == ties
    assert (ties > 0) == (name in TIED)


@pytest.mark.parametrize("name", TIED)
def test_strict_recalls_with_ties_are_the_lower_bounds(fixture: dict[str, np.ndarray], name: str) -> None:
    metrics = retrieval_metrics(*variant(fixture, name))
    for direction, long in (("t2i", "text2image"), ("i2t", "image2text")):
        assert recalls(metrics, direction) == pytest.approx(100 * fixture[f"{name}_strict_{long}_lower"], rel=1e-5)


@pytest.mark.parametrize("name", [*UNTIED, "small"])
def test_released_equals_the_released_script(fixture: dict[str, np.ndarray], name: str) -> None:
    metrics = retrieval_metrics(*variant(fixture, name), protocol="released")
    rounded = []
    for direction, long in (("t2i", "text2image"), ("i2t", "image2text")):
        own = recalls(metrics, direction)
        assert own == pytest.approx(100 * fixture[f"{name}_lenient_{long}"], rel=1e-5)
        rounded += [round(value, 1) for value in own]
        assert rounded[-3:] == fixture[f"{name}_reference_{long}_pct"].tolist()
    if name != "small":
        assert np.mean(rounded) == pytest.approx(fixture[f"{name}_reference_mean_recall_pct"])


@pytest.mark.parametrize("name", TIED)
def test_released_with_ties_is_not_above_the_script(fixture: dict[str, np.ndarray], name: str) -> None:
    metrics = retrieval_metrics(*variant(fixture, name), protocol="released")
    for direction, long in (("t2i", "text2image"), ("i2t", "image2text")):
        script = fixture[f"{name}_reference_{long}_pct"]
        assert all(own <= theirs + 0.05 for own, theirs in zip(recalls(metrics, direction), script, strict=True))


def test_strict_and_released_differ_where_captions_are_many(fixture: dict[str, np.ndarray]) -> None:
    strict, released = (retrieval_metrics(*variant(fixture, "k5"), protocol=p) for p in ("strict", "released"))
    assert released["i2t_R@5"] > strict["i2t_R@5"] + 1


def test_the_teacher_of_multi30k8k(shared_dir: Path) -> None:
    """The recalls that came with the features."""
    folder = shared_dir / "data" / "multi30k8k" / "features"
    text, image = (np.load(folder / f"valid.{part}.npy", allow_pickle=False) for part in ("text_en", "image"))
    metrics = retrieval_metrics(text, image, np.arange(len(text)))
    rounded = [round(metrics[key], 1) for key in KEYS[:-1]]
    assert rounded == [47.5, 80.6, 90.9, 47.5, 82.6, 90.5, 73.3]


def test_top_images(fixture: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    text, image, own = variant(fixture, "k5")
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", 1000)
    scores, indices = top_images(text, image, 10)
    cosine = (text / np.linalg.norm(text, axis=1)[:, None]) @ (image / np.linalg.norm(image, axis=1)[:, None]).T
    assert indices.tolist() == np.argsort(-cosine, axis=1)[:, :10].tolist()
    assert scores.numpy() == pytest.approx(-np.sort(-cosine, axis=1)[:, :10], abs=1e-6)
    ranks = retrieval_ranks(text, image, own)
    assert (indices == torch.from_numpy(own)[:, None]).any(1).tolist() == (ranks.t2i < 10).tolist()
    with pytest.raises(ValueError, match="between 1 and 60"):
        top_images(text, image, 61)


BAD_INPUTS = {
    "at least one": (torch.zeros(0, 4), torch.ones(2, 4), []),
    "must be a matrix": (torch.ones(4), torch.ones(2, 4), [0]),
    "joint space": (torch.ones(2, 4), torch.ones(2, 5), [0, 1]),
    "names image 2, but there are 2": (torch.ones(2, 4), torch.ones(2, 4), [0, 2]),
    "names image -1": (torch.ones(2, 4), torch.ones(2, 4), [-1, 0]),
    "one integer image index per caption": (torch.ones(2, 4), torch.ones(2, 4), [0]),
    "text feature of row 1 is not finite": (
        torch.tensor([[1.0, 0], [torch.nan, 0]]),
        torch.ones(2, 2),
        [0, 1],
    ),
    "image feature of row 0 is not finite": (
        torch.ones(2, 2),
        torch.tensor([[torch.inf, 0], [1, 0]]),
        [0, 1],
    ),
}


@pytest.mark.parametrize("sentence", BAD_INPUTS)
def test_bad_inputs_are_refused_in_a_sentence(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        retrieval_metrics(*BAD_INPUTS[sentence])


def test_float_indices_and_unknown_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="integer image index"):
        retrieval_metrics(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="strict, released"):
        retrieval_metrics(torch.ones(1, 2), torch.ones(1, 2), [0], protocol="loose")


def test_read_only_arrays_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    text = np.eye(3, dtype=np.float16)
    text.setflags(write=False)
    assert retrieval_metrics(text, text, np.arange(3))["mean_recall"] == 100
    assert not recwarn.list


@pytest.mark.parametrize("protocol", retrieval.PROTOCOLS)
def test_scores_are_made_in_blocks(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix product is larger than a block (the memory of 25,000 x 5,000 stays bounded)."""
    sizes: list[int] = []
    product = torch.Tensor.__matmul__

    def recorded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a) * b.shape[1])
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", recorded)
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", 4000)
    retrieval_metrics(torch.rand(500, 8), torch.rand(100, 8), torch.arange(500) % 100, protocol)
    assert sum(sizes) >= 50_000
    assert max(sizes) <= 4000


@pytest.mark.parametrize("set_name", ["mrv", "mrv2000"])
@pytest.mark.parametrize("direction", ["tr", "ir"])
def test_mean_rank_variance_equals_ccrk(fixture: dict[str, np.ndarray], set_name: str, direction: str) -> None:
    ranks = fixture[f"{set_name}_ranks_{direction}"]
    expected = fixture[f"{set_name}_std_{direction}_ccrk"]
    assert mean_rank_variance(ranks, "std") == pytest.approx(expected, rel=1e-5)
    assert mean_rank_variance(torch.from_numpy(ranks)) == pytest.approx(
        fixture[f"{set_name}_var_{direction}_own"], rel=1e-5
    )


def test_ranks_of_the_mrv_set(fixture: dict[str, np.ndarray]) -> None:
    for row, language in enumerate(fixture["mrv_langs"]):
        text, image = fixture[f"mrv_text_features_{language}"], fixture["mrv_image_features"]
        ranks = retrieval_ranks(text, image, np.arange(len(text)))
        assert ranks.i2t.tolist() == fixture["mrv_ranks_tr"][row].tolist()
        assert ranks.t2i.tolist() == fixture["mrv_ranks_ir"][row].tolist()


def test_mean_rank_variance_by_hand() -> None:
    ranks = np.array([[0, 4, 1], [2, 0, 1]])
    assert mean_rank_variance(ranks) == pytest.approx((1 + 4 + 0) / 3)
    assert mean_rank_variance(ranks, "std") == pytest.approx((1 + 2 + 0) / 3)
    assert mean_rank_variance(ranks[:1]) == 0


@pytest.mark.parametrize("ranks", [np.zeros(3), np.zeros((0, 3)), np.array([[0.0, np.nan]])])
def test_mean_rank_variance_refuses_bad_matrices(ranks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="ranks must be"):
        mean_rank_variance(ranks)


def test_mean_rank_variance_refuses_unknown_statistics() -> None:
    with pytest.raises(ValueError, match="variance, std"):
        mean_rank_variance(np.zeros((2, 2)), "range")


@pytest.mark.parametrize("kind", ["random", "near ties", "all equal", "exact copies"])
@pytest.mark.parametrize("protocol", ["strict", "released"])
@pytest.mark.parametrize("most_doubtful", [0.05, 1.0])
def test_float32_products_change_no_rank(
    kind: str, protocol: str, most_doubtful: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies within float32's rounding of a threshold is settled in float64, as pairs or as a whole block."""
    monkeypatch.setattr(retrieval, "MOST_DOUBTFUL", most_doubtful)
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", 700)
    monkeypatch.setattr(retrieval, "PAIRS_AT_ONCE", 50)
    image = torch.randn(60, 33, dtype=torch.float64)
    if kind == "near ties":
        image = image[:1] + 3e-4 * image
    elif kind == "all equal":
        image = image[:1].expand(60, 33).clone()
    elif kind == "exact copies":
        image = image[torch.arange(60) % 7]
    own = torch.cat([torch.arange(50), torch.arange(70) ** 2 % 37])  # images of one to several captions
    text = image[own] + (0.5 if kind == "random" else 3e-4) * torch.randn(120, 33, dtype=torch.float64)
    fast = retrieval_ranks(text, image, own, protocol)
    monkeypatch.setattr(retrieval, "_float32_is_exact_enough", lambda image: False)
    slow = retrieval_ranks(text, image, own, protocol)
    for name in ("t2i", "i2t", "t2i_tied", "i2t_tied"):
        assert torch.equal(getattr(fast, name), getattr(slow, name)), name
    if kind == "near ties":  # a control: float32 alone ranks these otherwise
        scores = torch.nn.functional.normalize(text).float() @ torch.nn.functional.normalize(image).float().T
        at_least = (scores >= scores[torch.arange(120), own][:, None]).sum(1) - 1
        assert not torch.equal(at_least, slow.t2i)
