"""Words cut into other pieces in every epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mclip_fairseq.data.subwords import SampledTokenColumn, SubwordSampler
from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.tasks.trikd import TriKDTask, TriKDTaskConfig

TEXTS = ["the black house is small", "look at this white bird", "der Vogel ist schwarz ☃"]


@pytest.fixture(scope="module")
def tokenizer(tiny_corpus: Path) -> XLMRTokenizer:
    return XLMRTokenizer(tiny_corpus / "tokenizer")


def column(tokenizer: XLMRTokenizer, alpha: float, seed: int = 1, longest: int = 99) -> SampledTokenColumn:
    sampler = SubwordSampler(tokenizer.processor, tokenizer.dictionary, alpha)
    return SampledTokenColumn(tokenizer.flat(TEXTS), sampler, seed, longest)


def spelled(tokenizer: XLMRTokenizer, ids: np.ndarray) -> list[str]:
    words = ["".join(tokenizer.dictionary[int(i)] for i in row if i > 2) for row in ids]
    return [word.replace("▁", " ").strip() for word in words]


def test_pieces_change_with_the_epoch_and_the_text_does_not(tokenizer: XLMRTokenizer) -> None:
    """The snowman has no piece: <unk> stays where it is."""
    drawn, rows = column(tokenizer, 0.1), np.arange(3)
    seen = []
    for epoch in range(8):
        drawn.set_epoch(epoch)
        ids = drawn.batch(rows)["text_tokens"].numpy()
        seen.append(tuple(map(tuple, ids.tolist())))
        assert spelled(tokenizer, ids) == spelled(tokenizer, tokenizer(TEXTS).numpy())
        assert (ids[:, 0] == drawn.tokens.bos).all()
    assert len(set(seen)) > 4


def test_a_caption_is_cut_by_seed_epoch_and_number_alone(tokenizer: XLMRTokenizer) -> None:
    first, second, other = column(tokenizer, 0.1), column(tokenizer, 0.1), column(tokenizer, 0.1, seed=2)
    alone = [second.batch(np.array([row]))["text_tokens"][0].tolist() for row in (2, 1, 0)]
    together = first.batch(np.arange(3))["text_tokens"]
    for row, ids in zip((2, 1, 0), alone, strict=True):
        assert together[row][: len(ids)].tolist() == ids
    assert other.batch(np.arange(3))["text_tokens"].tolist() != together.tolist()


def test_a_large_exponent_leaves_the_best_cut(tokenizer: XLMRTokenizer) -> None:
    assert column(tokenizer, 1e4).batch(np.arange(3))["text_tokens"].tolist() == tokenizer(TEXTS).tolist()


def test_captions_are_cut_to_the_limit(tokenizer: XLMRTokenizer) -> None:
    drawn = column(tokenizer, 0.1, longest=5)
    ids = drawn.batch(np.arange(3))["text_tokens"]
    assert ids.shape == (3, 5)
    assert (ids[:, -1] == drawn.tokens.eos).all()


def test_cuts_are_drawn_by_their_probability(tokenizer: XLMRTokenizer) -> None:
    """Against the frequencies of many draws of one word."""
    alpha = 0.3
    sampler = SubwordSampler(tokenizer.processor, tokenizer.dictionary, alpha, ways=4)
    ids = tokenizer.flat(["house"]).values[:-1]
    processor = tokenizer.processor
    ways = processor.nbest_encode("house", nbest_size=4, out_type=int)
    weights = np.exp(alpha * np.array([sum(processor.get_score(piece) for piece in way) for way in ways]))
    rng = np.random.default_rng(0)
    counts = Counter(tuple(sampler.draw(ids, rng)) for _ in range(4000))
    found = [
        counts[tuple(tokenizer.dictionary.index(processor.id_to_piece(piece)) for piece in way)] / 4000 for way in ways
    ]
    assert len(ways) == 4
    assert found == pytest.approx((weights / weights.sum()).tolist(), abs=0.03)


def task(corpus: Path, folder: Path, **options: object) -> TriKDTask:
    cfg = TriKDTaskConfig(data=str(corpus / "captions"), save_dir=str(folder), seed=1, cpu=True)
    cfg.image_features, cfg.text_features = (str(corpus / "features" / kind) for kind in ("image", "text"))
    for name, value in options.items():
        setattr(cfg, name, value)
    made = TriKDTask.setup_task(cfg)
    assert isinstance(made, TriKDTask)
    return made


def test_training_captions_are_drawn_and_validation_captions_are_not(tiny_corpus: Path, tmp_path: Path) -> None:
    made = task(tiny_corpus, tmp_path, subword_sampling=0.1, subword_model=str(tiny_corpus / "tokenizer"))
    made.load_dataset("train", data_selector=None)  # as the trainer asks for it
    made.load_dataset("valid")
    kinds = [type(made.datasets[split].parts[0].columns[0]).__name__ for split in ("train", "valid")]
    assert kinds == ["SampledTokenColumn", "TokenColumn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subword_sampling": -0.1}, "give a positive number"),
        ({"subword_sampling": 0.1}, "give --subword-model"),
        ({"subword_sampling": 0.1, "text_state_cache": "states"}, "leave out --text-state-cache"),
    ],
)
def test_contradictory_options_are_refused(
    tiny_corpus: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(tiny_corpus, tmp_path, **options)


def test_a_model_without_probabilities_is_refused(tmp_path: Path, tiny_corpus: Path) -> None:
    from train_tokenizer import train

    train([tiny_corpus / "raw" / "train.en"], tmp_path, 60, "bpe")
    with pytest.raises(ValueError, match="is not a unigram model"):
        task(tiny_corpus, tmp_path, subword_sampling=0.1, subword_model=str(tmp_path))
