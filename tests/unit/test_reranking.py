"""Re-ranked retrieval over languages and folds: against the released evaluation, and against counting by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mclip_fairseq.evaluation.benchmarks import reranking
from mclip_fairseq.evaluation.benchmarks.reranking import reranked, reranked_languages
from mclip_fairseq.evaluation.metrics.retrieval import metrics_from_ranks
from tests.parity import load_fixture
from tests.runs import start_ranks

# The released names of text and image queries, in the order of its `keys`.
NAMES = ("i2t_R@1", "i2t_R@5", "i2t_R@10", None, "t2i_R@1", "t2i_R@5", "t2i_R@10", None, None)


@pytest.mark.parametrize("variant", ["fix", "var", "one"])
def test_recalls_are_those_of_the_released_evaluation(
    variant: str, shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its recorded features, matching logits and k; rows in small blocks."""
    monkeypatch.setattr(reranking, "ROWS", 7)
    arrays = load_fixture(shared_dir, "ccrk/ccrk_eval.npz")
    image, text, logits = (arrays[f"{variant}_{name}"] for name in ("image_feat", "text_feat", "itm"))
    own = arrays[f"{variant}_txt2img"]
    for k, wanted in (("k_test", "rerank"), ("k_full", "rerank_k_full")):
        number = int(arrays[f"{variant}_{k}"])
        ranks = reranked(text, image, own, torch.arange(len(image)), lambda at, to: logits[to, at], number)
        got = metrics_from_ranks(ranks)
        for name, value in zip(NAMES, arrays[f"{variant}_{wanted}"].tolist(), strict=True):
            if name is not None:
                assert got[name] == pytest.approx(value, abs=1e-9), (name, k)
    assert ranks.ties == 0


def test_five_folds_are_those_of_the_released_evaluation(shared_dir: Path) -> None:
    arrays = load_fixture(shared_dir, "ccrk/ccrk_eval.npz")
    logits = arrays["fix_itm"]
    folds = torch.repeat_interleave(torch.arange(5), arrays["fold_sizes"])
    assert int(arrays["fold_k_test"].max()) == int(arrays["fold_k_test"].min())
    report = reranked_languages(
        {"en": arrays["fix_text_feat"]},
        arrays["fix_image_feat"],
        {"en": arrays["fix_txt2img"]},
        {"en": lambda at, to: logits[to, at]},
        k=int(arrays["fold_k_test"][0]),
        captioned_only=False,
        folds=folds,
    )
    for name, value in zip(NAMES, arrays["fold_mean"].tolist(), strict=True):
        if name is not None:
            assert report["results"]["en"][name] == pytest.approx(value, abs=1e-9), name
    assert "mean_rank_variance" not in report


def made_up() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(rows, 8, generator=generator) for rows in (9, 20))
    own = torch.randint(0, 9, (20,), generator=generator)
    return text, image, own, torch.randn(20, 9, generator=generator)


def by_hand(text: Tensor, image: Tensor, own: Tensor, logits: Tensor, images: list[int], k: int) -> dict[str, float]:
    """Recall at 1 of both directions, query by query."""
    texts = [row for row in range(len(own)) if int(own[row]) in images]
    cosine = torch.nn.functional.cosine_similarity(text[:, None], image[None], dim=2)

    def first(items: list[int], near: list[float], match: list[float]) -> int:
        nearest = sorted(zip(items, near, match, strict=True), key=lambda item: -item[1])[:k]
        return max(nearest, key=lambda item: item[2])[0]

    rows, columns = torch.tensor(texts), torch.tensor(images)
    hits = sum(
        first(images, cosine[row, columns].tolist(), logits[row, columns].tolist()) == int(own[row]) for row in texts
    )
    queries = sorted({int(own[row]) for row in texts})
    back = sum(
        int(own[first(texts, cosine[rows, column].tolist(), logits[rows, column].tolist())]) == column
        for column in queries
    )
    return {"t2i_R@1": 100 * hits / len(texts), "i2t_R@1": 100 * back / len(queries)}


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("images", [list(range(9)), [1, 4, 6, 8]])
def test_ranks_counted_by_hand(images: list[int], k: int) -> None:
    text, image, own, logits = made_up()
    ranks = reranked(text, image, own, torch.tensor(images), lambda at, to: logits[at, to], k)
    got = metrics_from_ranks(ranks)
    for name, value in by_hand(text, image, own, logits, images, k).items():
        assert got[name] == pytest.approx(value), name


def test_consistency_is_measured_over_aligned_languages_before_and_after() -> None:
    text, image, own, logits = made_up()
    report = reranked_languages(
        {"en": text, "de": text.roll(1, 0)},
        image,
        {"en": own, "de": own},
        dict.fromkeys(("en", "de"), lambda at, to: logits[at, to]),
        k=9,
        captioned_only=True,
    )
    # All nine are put in order by the same scores in both languages.
    assert report["mean_rank_variance"]["variance"]["t2i"] == 0
    assert report["k"] == 9


def on_one_rank(rank: int, world: int, folder: str) -> None:
    """One of the processes of the test below."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    vars(reranking)["ROWS"] = 3
    text, image, own, logits = made_up()
    scored = []

    def score(at: Tensor, to: Tensor) -> Tensor:
        scored.append(len(at))
        return logits[at, to]

    ranks = reranked(text, image, own, torch.arange(9), score, 4)
    torch.save([ranks.t2i, ranks.i2t, sum(scored)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_share_the_queries(tmp_path: Path) -> None:
    start_ranks("on_one_rank", 2, (str(tmp_path),), file=__file__)
    text, image, own, logits = made_up()
    ranks = reranked(text, image, own, torch.arange(9), lambda at, to: logits[at, to], 4)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for t2i, i2t, scored in parts:
        assert torch.equal(t2i, ranks.t2i)
        assert torch.equal(i2t, ranks.i2t)
        assert 0 < scored < 4 * (20 + len(own.unique()))
    assert sum(scored for *_, scored in parts) == 4 * (20 + len(own.unique()))


if __name__ == "__rank__":
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
