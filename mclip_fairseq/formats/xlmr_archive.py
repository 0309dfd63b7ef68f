"""An XLM-R archive of fairseq alone, whose texts can be compared with each other."""

from pathlib import Path

from torch import Tensor, nn

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.pair_tower import PairTower
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.xlmr_encoder import XLMREncoder


class MeanOfStates(nn.Module):
    """An XLM-R whose sentence embedding is the mean of its states, as in MTE's contrastive loss.

    Args:
        encoder: with its weights.
    """

    def __init__(self, encoder: XLMREncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, length) ids -> (texts, dim)."""
        return pool_mean(self.encoder(input_ids), attention_mask.eq(0))


def load_archive(archive: Path) -> PairTower:
    """Load a text encoder without an image tower, such as `mclip-extract-mte` writes.

    Args:
        archive: directory with `model.pt`, `dict.txt` and the SentencePiece model.

    Raises:
        UserError: a file is missing or damaged.
    """
    tokenizer = XLMRTokenizer(archive)
    padding = tokenizer.dictionary.pad()
    encoder = XLMREncoder.from_checkpoint(archive, tokenizer.dictionary)
    encoder.freeze("all")

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(texts)
        return {"input_ids": tokens, "attention_mask": tokens.ne(padding).long()}

    return PairTower(MeanOfStates(encoder), tokenize, padding, archive.resolve().name, None, encoder.dim)
