"""Layers that keep less for the backward pass: the values, gradients, draws and names are those of fairseq's layers."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, TransformerConfig
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from mclip_fairseq.models.mte import MTEModel, MTEModelConfig
from mclip_fairseq.models.recomputing import keep_less, recompute

DIM, LENGTH, ROWS = 32, 9, 5
SIZES: dict[str, Any] = {"embed_dim": DIM, "ffn_embed_dim": 4 * DIM, "attention_heads": 4}


def layer_of(kind: str, activation_dropout: float = 0.0) -> nn.Module:
    """fairseq's layer with dropout."""
    options = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": activation_dropout}
    if kind == "encoder":
        cfg = TransformerConfig(activation_fn="gelu", encoder=EncDecBaseConfig(**SIZES), **options)
        return TransformerEncoderLayerBase(cfg)
    decoder = DecoderConfig(normalize_before=True, **SIZES)
    cfg = TransformerConfig(
        activation_fn="gelu_accurate", encoder=EncDecBaseConfig(embed_dim=DIM), decoder=decoder, **options
    )
    return TransformerDecoderLayerBase(cfg)


def used_twice(kind: str, layer: nn.Module, states: Tensor) -> Tensor:
    """What a stack of the layer and itself returns."""
    torch.manual_seed(1)
    for _ in range(2):
        if kind == "encoder":
            states = layer(states, encoder_padding_mask=None)
        else:
            states = layer(states, encoder_out=torch.ones(LENGTH, ROWS, DIM))[0]
    return states


def outcome(kind: str, layer: nn.Module) -> tuple[list[Tensor], int]:
    """Output and gradients, and the bytes kept between them."""
    torch.manual_seed(0)
    states = torch.randn(LENGTH, ROWS, DIM, requires_grad=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}
    held = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = used_twice(kind, layer, states)
    return [result, *torch.autograd.grad(result.square().sum(), [states, *layer.parameters()])], sum(kept.values())


@pytest.mark.parametrize(("kind", "share"), [("encoder", 0.75), ("decoder", 0.6)])
@pytest.mark.parametrize("activation_dropout", [0.0, 0.1])
def test_less_is_kept_of_the_same_layer(kind: str, share: float, activation_dropout: float) -> None:
    plain = layer_of(kind, activation_dropout)
    less = copy.deepcopy(plain)
    keep_less([less])
    assert list(less.state_dict()) == list(plain.state_dict())
    (wanted, bytes_of_plain), (got, kept) = outcome(kind, plain), outcome(kind, less)
    # The tanh form of GELU is rounded differently in one kernel; all else is equal bit for bit.
    largest = max(float(one.abs().max()) for one in wanted)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0 if kind == "encoder" else 1e-6 * largest)
    if not activation_dropout:
        assert kept < share * bytes_of_plain
    less.eval()
    plain.eval()
    with torch.no_grad():
        states = torch.randn(LENGTH, ROWS, DIM)
        torch.testing.assert_close(used_twice(kind, less, states), used_twice(kind, plain, states), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_recomputed_layers_draw_the_same_dropout(kind: str) -> None:
    plain = layer_of(kind)
    keep_less([plain])
    recomputed = copy.deepcopy(plain)
    recompute([recomputed])
    (wanted, _), (got, kept) = outcome(kind, plain), outcome(kind, copy.deepcopy(recomputed))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    # The inputs of both uses, and the encoder's states for the decoder.
    assert kept <= 4 * LENGTH * ROWS * DIM * 4


def test_mte_with_checkpoint_activations_has_the_same_gradients() -> None:
    pieces = Dictionary()
    for number in range(60):
        pieces.add_symbol(f"piece{number}")
    narrow: dict[str, Any] = {f"encoder_{name}": size for name, size in SIZES.items()}
    sizes = narrow | {"encoder_layers": 2, "decoder_layers": 2, "decoder_ffn_embed_dim": 64}
    task = SimpleNamespace(source_dictionary=pieces, langs=["en", "de"])
    torch.manual_seed(0)
    model, less = (
        MTEModel.build_model(MTEModelConfig(decoder_attention_heads=4, checkpoint_activations=on, **sizes), task)
        for on in (False, True)
    )
    less.load_state_dict(model.state_dict())
    tokens = torch.randint(pieces.nspecial, len(pieces), (3, 7))
    gradients = []
    for one in (model, less):
        torch.manual_seed(1)
        logits, extra = one(
            tokens, torch.tensor([7] * 3), tokens, tgt_lang_id=torch.ones(3).long(), contrast_tokens=tokens
        )
        loss = logits.square().mean() + extra["source_pooled"].sum() + extra["target_pooled"].square().sum()
        trained = [parameter for parameter in one.parameters() if parameter.requires_grad]
        gradients.append(torch.autograd.grad(loss, trained, allow_unused=True))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
