"""`encode_text` splits texts into batches by tokens, and nobody notices but for the time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mclip_fairseq import MultilingualCLIP, inference

STORED = Path(__file__).resolve().parents[1] / "data" / "legacy" / "exported"
TEXTS = ["ein Hund", "", "Baum " * 40, "the red cat is small", "x", "une maison bleue " * 8, "ein Hund"] * 5


@pytest.fixture(scope="module")
def model() -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(STORED, device="cpu")


def shapes(model: MultilingualCLIP, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of every batch of token ids from now on."""
    seen: list[tuple[int, ...]] = []
    encode = model.tower.encode_text

    def recording(inputs: dict[str, Tensor]) -> Tensor:
        seen.append(tuple(inputs["tokens"].shape))
        return encode(inputs)

    monkeypatch.setattr(model.tower, "encode_text", recording)
    return seen


@pytest.mark.parametrize("window", [4, 8192])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_features_are_those_of_single_texts(
    model: MultilingualCLIP, window: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.cat([model.encode_text(text) for text in TEXTS])
    monkeypatch.setattr(inference, "WINDOW", window)
    seen = shapes(model, monkeypatch)
    torch.testing.assert_close(model.encode_text(TEXTS, batch_size=batch_size), expected, rtol=0, atol=2e-6)
    assert sum(rows for rows, _ in seen) == len(TEXTS)
    assert max(rows for rows, _ in seen) <= min(batch_size, window)


def test_a_short_list_is_split_where_padding_costs_more(
    model: MultilingualCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = shapes(model, monkeypatch)
    model.encode_text(TEXTS)
    tokens = sum(int(row.ne(model.tokenizer.dictionary.pad()).sum()) for row in model.tokenizer(TEXTS))
    assert len(seen) > 1
    assert tokens <= sum(rows * length for rows, length in seen) < 1.2 * tokens


@pytest.mark.parametrize("left", [False, True])
def test_token_ids_padded_on_either_side(model: MultilingualCLIP, left: bool) -> None:
    tokens = model.tokenizer(TEXTS)
    expected, pad = model.encode_text(TEXTS), model.tokenizer.dictionary.pad()
    if left:
        tokens = torch.stack([torch.cat([row[row == pad], row[row != pad]]) for row in tokens])
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=2e-6)
    assert model.encode_text(tokens[:0]).shape == model.encode_text([]).shape == (0, model.dim)
