"""XLM-R archives store the token table once, although two weights have its values."""

from argparse import Namespace
from pathlib import Path

import torch
from fairseq.data import Dictionary

from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.xlmr_encoder import PREFIX, TOKEN_TABLE, XLMREncoder, xlmr_args

OUTPUT_TABLE = "lm_head.weight"


def large_table() -> tuple[XLMREncoder, Dictionary]:
    """An encoder that is mostly its table."""
    dictionary = Dictionary()
    for number in range(3000):
        dictionary.add_symbol(f"piece{number}")
    sizes = {"encoder_layers": 1, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2}
    options = Namespace(**sizes, encoder_max_positions=16, dropout=0.0, attention_dropout=0.0)
    return XLMREncoder(xlmr_args(options), dictionary), dictionary


def test_the_table_is_stored_once_and_old_archives_load(tmp_path: Path) -> None:
    encoder, dictionary = large_table()
    stored = encoder.checkpoint()
    weights = stored["model"]
    assert torch.equal(weights[PREFIX + TOKEN_TABLE], weights[PREFIX + OUTPUT_TABLE])
    torch.save(stored, tmp_path / "new.pt")
    # Earlier versions wrote two copies.
    torch.save({**stored, "model": {name: tensor.clone() for name, tensor in weights.items()}}, tmp_path / "old.pt")
    table = weights[PREFIX + TOKEN_TABLE].nbytes
    new, old = ((tmp_path / name).stat().st_size for name in ("new.pt", "old.pt"))
    assert table < new < 1.3 * table
    assert 0.99 * table < old - new < 1.01 * table
    for name in ("new.pt", "old.pt"):
        assert XLMREncoder.from_checkpoint(tmp_path / name, dictionary).identity() == encoder.identity()


def test_the_checkpoint_is_a_copy() -> None:
    encoder, _ = large_table()
    stored = encoder.checkpoint()["model"][PREFIX + TOKEN_TABLE]
    before = stored.clone()
    with torch.no_grad():
        encoder.embed_tokens.weight.add_(1.0)
    assert torch.equal(stored, before)


def test_an_archive_of_the_fixtures_loads(shared_dir: Path) -> None:
    """An archive of an earlier version, which has two copies."""
    folder = shared_dir / "fixtures"
    XLMREncoder.from_checkpoint(folder / "mte_tiny_extracted.pt", load_dictionary(folder / "xlmr_tiny"))
