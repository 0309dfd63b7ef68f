"""Captions whose words are cut into other pieces in every epoch (subword regularisation, Kudo, ACL 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mclip_fairseq.data.columns import Column, Rows
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.storage.pieces import WORD_START

if TYPE_CHECKING:
    from fairseq.data import Dictionary
    from sentencepiece import SentencePieceProcessor


class Cuts(NamedTuple):
    """The ways to cut one word.

    Attributes:
        pieces: ids of each way.
        upto: (ways,) cumulative probabilities; the last is 1.
    """

    pieces: list[list[int]]
    upto: npt.NDArray[np.float64]


class SubwordSampler:
    """Cuts words into pieces at random, by their probability in SentencePiece's unigram model.

    The unigram model cuts each word on its own, so words are drawn independently: a cut of score s, the logarithm of
    its probability, is drawn with a probability proportional to exp(alpha s), among the `ways` best ones.

    Args:
        processor: the tokenizer's unigram model.
        dictionary: of the token ids.
        alpha: 0 draws all ways alike, and large values almost always the best one (Kudo: 0.1 to 0.5).
        ways: most cuts of a word.
    """

    def __init__(self, processor: SentencePieceProcessor, dictionary: Dictionary, alpha: float, ways: int = 16) -> None:
        self.processor = processor
        self.dictionary = dictionary
        self.alpha = alpha
        self.ways = ways
        self.starts = np.array([symbol.startswith(WORD_START) for symbol in dictionary.symbols])
        self.known: dict[tuple[int, ...], Cuts] = {}

    def cuts(self, word: tuple[int, ...]) -> Cuts:
        """The ways to cut the word that these pieces spell; itself alone where it cannot be spelled."""
        if word not in self.known:
            self.known[word] = self._find(word)
        return self.known[word]

    def _find(self, word: tuple[int, ...]) -> Cuts:
        unknown = self.dictionary.unk()
        text = "".join(self.dictionary[piece] for piece in word).removeprefix(WORD_START)
        if unknown in word or not text:
            return Cuts([list(word)], np.ones(1))
        pieces, scores = [], []
        for way in self.processor.nbest_encode(text, nbest_size=self.ways, out_type=str):
            ids = [self.dictionary.index(piece) for piece in way]
            # Normalisation may change a word that was not normalised before: only the same spelling counts.
            if unknown not in ids and "".join(way).removeprefix(WORD_START) == text:
                pieces.append(ids)
                scores.append(sum(self.processor.get_score(self.processor.piece_to_id(piece)) for piece in way))
        if not pieces:
            return Cuts([list(word)], np.ones(1))
        weights = np.exp(self.alpha * (np.array(scores) - max(scores)))
        return Cuts(pieces, np.cumsum(weights) / weights.sum())

    def draw(self, ids: npt.NDArray[np.integer], rng: np.random.Generator) -> list[int]:
        """Cut a sentence again.

        Args:
            ids: pieces of the sentence, without `<s>` and `</s>`.
            rng: of the draws; one number a word.

        Returns:
            ids of the same text.
        """
        bounds = [0, *(np.flatnonzero(self.starts[ids[1:]]) + 1).tolist(), len(ids)]
        words = [tuple(ids[start:end].tolist()) for start, end in pairwise(bounds)]
        drawn: list[int] = []
        for word, number in zip(words, rng.random(len(words)), strict=True):
            pieces, upto = self.cuts(word)
            drawn += pieces[min(int(np.searchsorted(upto, number, side="right")), len(pieces) - 1)]
        return drawn


class SampledTokenColumn(Column):
    """Token ids of the captions, cut into other pieces in every epoch.

    A caption's pieces depend on the seed, the epoch and its number alone. Batches are made by the stored lengths.

    Args:
        tokens: the captions, with the best cut of each word.
        sampler: cuts them again.
        seed: of the draws.
        max_tokens: captions are cut to this many tokens, `<s>` and `</s>` included.
    """

    names = ("text_tokens",)
    options: ClassVar = {"text_tokens": "--subword-sampling"}

    def __init__(self, tokens: FlatTokens, sampler: SubwordSampler, seed: int, max_tokens: int) -> None:
        self.tokens = tokens
        self.sampler = sampler
        self.seed = seed
        self.max_tokens = max_tokens
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Cut the captions differently from now on."""
        self.epoch = epoch

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """`text_tokens`, right-padded."""
        tokens, sentences = self.tokens, []
        for row in rows.tolist():
            start = int(tokens.offsets[row])
            ids = tokens.values[start : start + int(tokens.lengths[row])]
            drawn = self.sampler.draw(ids, np.random.default_rng([self.seed, self.epoch, row]))
            sentences.append([tokens.bos, *drawn[: self.max_tokens - 2], tokens.eos])
        out = np.full((len(sentences), max(map(len, sentences), default=0)), tokens.pad, dtype=np.int64)
        for number, sentence in enumerate(sentences):
            out[number, : len(sentence)] = sentence
        return {"text_tokens": torch.from_numpy(out)}
