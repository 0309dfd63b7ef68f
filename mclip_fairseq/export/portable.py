"""Both towers in plain torch and `transformers` modules, without fairseq: what other runtimes can be given."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.formats.xlmr import to_transformers
from mclip_fairseq.models.pooling import POOLING, pool_last


class PortableText(nn.Module):
    """The text tower: token ids to normalised embeddings, equal to `TrainedTower.encode_text`.

    Args:
        tower: of a model `mclip`, `teacher_learning` or `altclip`.
    """

    def __init__(self, tower: TrainedTower) -> None:
        super().__init__()
        module = tower.module
        self.encoder = to_transformers(module.text_encoder).roberta
        self.padding_idx = int(module.padding_idx)
        student = hasattr(module, "text_head")
        self.pooling = str(module.cfg.pooling)
        self.layers = nn.ModuleList([] if student else [plain_layer(layer) for layer in module.x_projector.layers])
        self.projection = module.text_head if student else nn.Identity()
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
            states, padding = POOLING[self.pooling](states, padding)[:, None], padding[:, :1] & False
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return F.normalize(self.projection(pool_last(states, padding)), dim=1)


class PortableImage(nn.Module):
    """The image tower: pixels to normalised embeddings, equal to `TrainedTower.encode_pixels`.

    Args:
        tower: its teacher is loaded.
    """

    def __init__(self, tower: TrainedTower) -> None:
        super().__init__()
        self.teacher = tower.teacher
        self.module = tower.module
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim), L2-normalised."""
        if self.module.image_transform is not None:  # a model with an image tower of its own
            own: Tensor = self.module.encode_image(pixel_values)
            return own
        features = self.teacher.encoder("image", self.module.image_space)(pixel_values)
        projected: Tensor = self.module.encode_image(features=features)
        return projected


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
