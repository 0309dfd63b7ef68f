"""`--embedding`: the shared table starts from the word vectors of a `transformers` model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mclip_fairseq.models.mla_parts import word_embeddings
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from tests.mla_data import nlt


def test_a_frozen_table_is_berts_and_may_be_left_out(
    mla_corpus: Path, photos: Path, run_train: Callable[..., str], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    rows = len((mla_corpus / "vocab.txt").read_text(encoding="utf-8").splitlines())
    sizes = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertModel(BertConfig(vocab_size=rows, **sizes))
    bert.save_pretrained(tmp_path / "bert")
    table = bert.get_input_embeddings().weight.detach()
    assert torch.equal(word_embeddings(str(tmp_path / "bert")), table)
    frozen = ("--embedding", tmp_path / "bert", "--train-parts", "acquirers,linear", "--disable-validation")
    for name, more in (("whole", ()), ("small", ("--drop-frozen",))):
        run_train(*nlt(mla_corpus, photos, tmp_path / name, *frozen, "--max-update", 1, *more))
    whole, small = (load_checkpoint(tmp_path / n / "checkpoint_last.pt")["model"] for n in ("whole", "small"))
    assert torch.equal(whole["embedding.weight"], table)
    assert whole.keys() - small.keys() == {"embedding.weight"}


def test_a_place_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a transformers model"):
        word_embeddings(str(tmp_path))
