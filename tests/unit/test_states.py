"""Cached token states: what a batch carries, and ranks that share the work."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary

from mclip_fairseq.data import states
from mclip_fairseq.data.states import TokenStates, cached_states, places_of
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.models import kept_states
from mclip_fairseq.models.kept_states import KeptStates
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.pooling import POOLING, pad_rows, pool_mean
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, xlmr_args
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.owners import is_leftover, machine

SIZES: dict[str, Any] = {
    "encoder_layers": 1,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
}


def fifty_pieces() -> Dictionary:
    pieces = Dictionary()
    for number in range(50):
        pieces.add_symbol(f"piece{number}")
    pieces.add_symbol("<mask>")
    return pieces


def model_and_captions() -> tuple[MCLIPModel, FlatTokens]:
    torch.manual_seed(0)
    pieces = fifty_pieces()
    cfg: Any = MCLIPModelConfig(teacher_dim=6, projector_ffn_embed_dim=32, projector_attention_heads=2, **SIZES)
    sentences = [torch.randint(5, 50, (length,)) for length in (3, 9, 1, 5, 5, 2, 7)]
    return MCLIPModel(cfg, XLMREncoder.build("", cfg, pieces), None, {}), FlatTokens.from_sentences(sentences, pieces)


def test_a_batch_is_put_together_on_the_device() -> None:
    values, sizes = np.arange(24, dtype=np.float16).reshape(12, 2), np.array([3, 1, 5, 2, 1])
    stored, rows = TokenStates(values, sizes), np.array([2, 0, 4])
    flat, padding = stored.batch(rows)
    assert flat.dtype == torch.float16
    assert flat.shape == (9, 2)
    expected = torch.zeros(3, 5, 2, dtype=torch.float16)
    for place, (begin, size) in enumerate([(4, 5), (0, 3), (11, 1)]):
        expected[place, :size] = torch.from_numpy(values[begin : begin + size])
    assert torch.equal(pad_rows(flat, padding), expected)
    assert padding.sum(1).tolist() == [0, 2, 4]
    assert places_of(np.array([4, 0]), np.array([2, 1])).tolist() == [4, 5, 0]
    left = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.equal(pad_rows(flat[:3], left)[1], torch.stack([flat[0] * 0, flat[0] * 0, flat[2]]))


def test_kept_states_are_those_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_states, "BLOCK", 2)
    model, _ = model_and_captions()
    files = [np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float16) for seed, n in enumerate((7, 5))]
    plain = [TokenStates(files[0], np.array([3, 4])), TokenStates(files[1], np.array([1, 2, 2]))]
    kept = [TokenStates(one.values, one.sizes, f"file {number}") for number, one in enumerate(plain)]
    for one in (*kept, kept[1]):  # a file that is known is not kept twice
        one.kept_from = model.kept_states.add(one.name, one.values)
    for one, other, rows in ((plain[0], kept[0], [1, 0]), (plain[1], kept[1], [2, 0])):
        places, padding = other.batch(np.array(rows))
        assert places.dtype == torch.int64
        states = one.batch(np.array(rows))[0]
        assert torch.equal(model.kept_states.at(places), states)
        expected = model.token_states(None, states, padding)
        assert all(map(torch.equal, model.token_states(None, places, padding), expected))
    assert model.kept_states.rows is not None
    assert model.kept_states.rows.shape == (12, 16)
    assert not any("kept" in name for name in model.state_dict())


def test_states_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptStates()
    kept.add("file", np.zeros((2**20, 512), np.float16))

    def full(*shape: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match=r"--keep-text-states: cpu has no room for 1\.0 GiB of states; leave it out"):
        kept.at(torch.tensor([0]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cached_states_equal_computed_ones(dtype: str, tmp_path: Path) -> None:
    model, captions = model_and_captions()
    model.eval()
    cache = cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), dtype)
    rows = np.array([4, 0, 1])
    flat, padding = cache.batch(rows)
    computed, cached = model.encode_text(captions.batch(rows)), model.encode_text(states=flat, padding=padding)
    torch.testing.assert_close(cached, computed, rtol=0, atol=1e-6 if dtype == "float32" else 2e-3)
    assert [path.name for path in tmp_path.iterdir()] == [next(tmp_path.glob(f"{dtype}-states-*.npy")).name]


@pytest.mark.parametrize("pooling", list(POOLING))
def test_pooled_states_are_one_a_caption(pooling: str, tmp_path: Path) -> None:
    """Pooled again by the model, they are what its head would have read."""
    model, captions = model_and_captions()
    rows = np.arange(len(captions))
    every, one = (
        cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32", pooling=kept)
        for kept in ("", pooling)
    )
    assert one.values.shape == (len(captions), 16)
    (flat, padding), (pooled, no_padding) = every.batch(rows), one.batch(rows)
    expected = POOLING[pooling](pad_rows(flat, padding), padding)
    torch.testing.assert_close(POOLING[pooling](pad_rows(pooled, no_padding), no_padding), expected)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", [{"encoder_attention_heads": 4}, {"activation_fn": "relu"}])
def test_the_same_weights_in_another_structure_have_a_cache_of_their_own(
    change: dict[str, Any], tmp_path: Path
) -> None:
    model, captions = model_and_captions()
    args = xlmr_args(Namespace(**vars(model.cfg)))
    found = []
    for changes in ({}, change, {}):
        encoder = XLMREncoder(Namespace(**(vars(args) | changes)), fifty_pieces())
        encoder.load_state_dict(model.text_encoder.state_dict())
        found.append(cached_states(tmp_path, captions, encoder, torch.device("cpu"), "float32").values)
    assert not np.allclose(found[0], found[1], rtol=0, atol=1e-6)
    assert np.array_equal(found[0], found[2])
    assert len(list(tmp_path.iterdir())) == 2


def test_states_of_bfloat16_are_a_cache_of_their_own(tmp_path: Path) -> None:
    model, captions = model_and_captions()
    full, low = (
        cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32", lowered)
        for lowered in (False, True)
    )
    difference = np.abs(np.asarray(full.values) - np.asarray(low.values)).max()
    assert 0 < difference < 0.05
    assert len(list(tmp_path.iterdir())) == 2


def test_shares_of_ranks_make_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks in turn; tests/distributed has real ones."""
    model, captions = model_and_captions()
    one = cached_states(tmp_path / "one", captions, model.text_encoder, torch.device("cpu"), "float32")
    monkeypatch.setattr(states, "batches_by_tokens", lambda sizes, cost: np.array_split(np.argsort(sizes), 4))
    path, folder = tmp_path / "all.npy", tmp_path
    monkeypatch.setattr(states, "objects_of_all_ranks", lambda value: [value] * 3)
    for rank in (2, 1, 0):  # the first rank joins what the others have written
        monkeypatch.setattr(states, "every_nth", lambda rank=rank: slice(rank, None, 3))
        writer = states.StateWriter(path, captions, model.text_encoder, torch.device("cpu"), "float32", False)
        with monkeypatch.context() as patch:
            if rank:
                patch.setattr(
                    Path, "unlink", lambda path, missing_ok: None
                )  # the others' wait for the first rank ends at once
            writer.together("mark")
    np.testing.assert_allclose(np.load(path), one.values, atol=1e-6)
    assert {file.name for file in folder.glob("*.share*")} == {f"all.npy.share{rank}.mark" for rank in (1, 2)}


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    model, captions = model_and_captions()
    with pytest.raises(UserError, match=r"--text-state-cache .+: cannot be written \(No space left on device\); make"):
        cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_the_next_run_removes_what_a_killed_one_has_left(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute() -> TokenStates:
        return cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32")

    model, captions = model_and_captions()
    with monkeypatch.context() as patch:
        if shared:  # as the first of two ranks that see the same directory
            patch.setattr(states, "objects_of_all_ranks", lambda value: [value, value])
            patch.setattr(states.StateWriter, "joined", lambda self, shares: interrupted())
        patch.setattr(os, "replace", lambda *paths: interrupted())
        with pytest.raises(KeyboardInterrupt):
            compute()
    assert len(list(tmp_path.iterdir())) == 1
    assert all(is_leftover(path) for path in tmp_path.iterdir())
    live = tmp_path / f"states.npy.{machine()}.{os.getppid()}.tmp"
    live.touch()
    compute()
    assert len(list(tmp_path.iterdir())) == 2
    assert live.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04 a zip archive"])
def test_a_damaged_cache_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    model, captions = model_and_captions()
    cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (content, whole[:-20]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"states-\w+\.npy: cannot be read \(.+\); remove it"):
            cached_states(tmp_path, captions, model.text_encoder, torch.device("cpu"), "float32")


def interrupted() -> None:
    raise KeyboardInterrupt


def test_means_of_long_texts_in_bfloat16() -> None:
    """A count in bfloat16 would be 304 instead of 303."""
    ones = torch.ones(1, 303, 2, dtype=torch.bfloat16)
    assert pool_mean(ones, torch.zeros(1, 303, dtype=torch.bool)).tolist() == [[1.0, 1.0]]
    varied = torch.randn(2, 303, 4, dtype=torch.bfloat16)
    padding = torch.arange(303)[None, :] >= torch.tensor([[303], [300]])
    expected = pool_mean(varied.double(), padding).to(torch.bfloat16)
    assert torch.equal(pool_mean(varied, padding), expected)


def test_half_precision_gives_unit_rows_and_scale_in_float32() -> None:
    model, captions = model_and_captions()
    model.eval()
    exact = model.encode_text(captions.batch(np.arange(7)))
    half = model.to(torch.bfloat16)
    rows = half.encode_text(captions.batch(np.arange(7)))
    assert rows.dtype == half.scale.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7), rtol=0, atol=1e-6)
    assert (rows * exact).sum(1).min() > 0.995
