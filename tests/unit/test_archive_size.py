"""XLM-R archives store the token table once, although two weights have its values."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models import text_encoder
from mclip_fairseq.models.freezing import state_hash
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


def test_frozen_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = large_table()
    hashed: list[int] = []

    def counted(state: Any) -> str:
        hashed.append(len(state))
        return state_hash(state)

    monkeypatch.setattr(text_encoder, "state_hash", counted)
    first = encoder.identity()
    encoder.freeze("all")
    assert encoder.identity() == encoder.identity() == first
    assert len(hashed) == 1
    weights = encoder.encoder.state_dict()
    encoder.encoder.load_state_dict({name: tensor + 1 for name, tensor in weights.items()})
    assert encoder.identity() != first
    with torch.no_grad():
        encoder.embed_tokens.weight.zero_()
    assert len({encoder.identity()["sha256"] for _ in range(2)}) == 1
    assert len(hashed) == 3
    encoder.embed_tokens.weight.requires_grad_()
    encoder.embed_tokens.weight.data.fill_(3.0)  # an optimizer's write, which leaves no sign
    assert encoder.identity()["sha256"] == state_hash(encoder.encoder.state_dict())


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
