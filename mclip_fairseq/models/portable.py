"""Text and image paths in plain torch and `transformers` modules, without fairseq: what other runtimes can be given."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_fairseq.models.dual_encoder import DualEncoder
from mclip_fairseq.models.inverse import InverseTower
from mclip_fairseq.models.pooling import POOLING, pool_last
from mclip_fairseq.models.text_encoder import TextEncoder


class PortableText(nn.Module):
    """Text encoder, pooling, layers and a projection: token ids to the rows of `DualEncoder.encode_text`.

    Args:
        encoder: the text encoder.
        pooling: `mean` and `first` pool before the layers, `last` takes the state of `</s>` after them.
        layers: fairseq's post-norm transformer layers after the encoder.
        projection: of the pooled state.
    """

    def __init__(self, encoder: TextEncoder, pooling: str, layers: Sequence[nn.Module], projection: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.plain_module()
        self.padding_idx = encoder.padding_idx
        self.pooling = pooling
        self.layers = nn.ModuleList([plain_layer(layer) for layer in layers])
        self.projection = projection
        self.eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode.

        Args:
            input_ids: (batch, length) int64 ids `<s> ... </s>`, padded on either side.

        Returns:
            (batch, dim), L2-normalised.
        """
        padding = input_ids.eq(self.padding_idx)
        states = self.encoder(input_ids, attention_mask=(~padding).long()).last_hidden_state
        if self.pooling != "last":  # one state per text is left, which is also the last one
            # "& False" keeps the mask's shape dynamic for ONNX, where a constant would not.
            states, padding = POOLING[self.pooling](states, padding)[:, None], padding[:, :1] & False
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return F.normalize(self.projection(pool_last(states, padding)), dim=1)


class PortableInverse(nn.Module):
    """A text encoder, a head on each of its states, and an `InverseTower`, likewise.

    Args:
        encoder: the text encoder.
        head: of the student.
        inverse: the layers and CLIP's text tower.
        projection: of the pooled state.
    """

    def __init__(self, encoder: TextEncoder, head: nn.Module, inverse: InverseTower, projection: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.plain_module()
        self.padding_idx = encoder.padding_idx
        self.head, self.inverse, self.projection = head, inverse, projection
        self.layers = nn.ModuleList([plain_layer(layer) for layer in inverse.layers])
        self.eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids, right-padded -> (batch, dim), L2-normalised."""
        padding = input_ids.eq(self.padding_idx)
        states = self.head(self.encoder(input_ids, attention_mask=(~padding).long()).last_hidden_state)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return F.normalize(self.projection(self.inverse.read(states, padding)), dim=1)


class PortableImage(nn.Module):
    """An image tower and what a model makes of its features: pixels to the rows of `DualEncoder.encode_image`.

    Args:
        module: the model.
        image_tower: with `encode_image`; None where the model has its own.
    """

    def __init__(self, module: DualEncoder, image_tower: nn.Module | None) -> None:
        super().__init__()
        self.image_tower: Any = image_tower
        self.module = module
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim), L2-normalised."""
        if self.module.image_transform is not None:  # a model with an image tower of its own
            return self.module.encode_image(pixel_values)
        features = self.image_tower.encoder("image", self.module.image_space)(pixel_values)
        return self.module.encode_image(features=features)


def plain_layer(layer: Any) -> nn.TransformerEncoderLayer:
    """A post-norm layer of fairseq as torch's own, with the same weights."""
    attention = layer.self_attn
    plain = nn.TransformerEncoderLayer(
        d_model=attention.embed_dim,
        nhead=attention.num_heads,
        dim_feedforward=layer.fc1.out_features,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=False,
    )
    thirds = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        plain.self_attn.in_proj_weight.copy_(torch.cat([third.weight for third in thirds]))
        plain.self_attn.in_proj_bias.copy_(torch.cat([third.bias for third in thirds]))
    plain.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
    plain.linear1.load_state_dict(layer.fc1.state_dict())
    plain.linear2.load_state_dict(layer.fc2.state_dict())
    plain.norm1.load_state_dict(layer.self_attn_layer_norm.state_dict())
    plain.norm2.load_state_dict(layer.final_layer_norm.state_dict())
    return plain.eval()
