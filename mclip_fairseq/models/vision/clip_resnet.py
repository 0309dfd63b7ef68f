"""CLIP with a ResNet image tower (RN50, RN101, RN50x4, RN50x16, RN50x64), which `transformers` lacks, as its model.

Architecture: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021),
section 2.4. Importing this file registers the model, so that `AutoModel.from_pretrained` reads its directories.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_fairseq.compat import shield_torchaudio

shield_torchaudio()
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PretrainedConfig,
    PreTrainedModel,
)

HEAD_WIDTH = 64
EXPANSION = 4
# The stem halves the edge twice, and three of the four stages halve it once.
TOTAL_STRIDE = 32


class CLIPResNetConfig(PretrainedConfig):
    """Sizes of a CLIP with a ResNet.

    Args:
        blocks: bottleneck blocks of each of the four stages.
        width: channels after the stem.
        image_size: pixels along an edge.
        projection_dim: width of the joint space.
        text_config: arguments of `CLIPTextConfig`.
        **kwargs: of every configuration.
    """

    model_type = "clip_resnet"

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        image_size: int = 224,
        projection_dim: int = 1024,
        text_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.blocks = list(blocks)
        self.width = width
        self.image_size = image_size
        self.projection_dim = projection_dim
        self.text_config = dict(text_config or {}) | {"projection_dim": projection_dim}
        super().__init__(**kwargs)

    @property
    def output_width(self) -> int:
        """Channels after the last stage: each of the stages after the first doubles them."""
        return EXPANSION * self.width * 2 ** (len(self.blocks) - 1)


def attention_heads(config: CLIPResNetConfig) -> int:
    """Heads of the attention pool."""
    return config.output_width // HEAD_WIDTH


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolution and a shortcut; strides are average pools on both paths.

    Args:
        inputs: channels of the input.
        width: channels inside; the output has four times as many.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = None
        # Every stage of these models begins with a block that changes the width or the resolution.
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, 4 width, h / stride, w / stride)."""
        inside = F.relu(self.bn1(self.conv1(x)))
        inside = self.pool(F.relu(self.bn2(self.conv2(inside))))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        return F.relu(self.bn3(self.conv3(inside)) + shortcut)


class AttentionPool(nn.Module):
    """Attention with the mean over all grid cells as query, instead of a global average.

    Args:
        grid: cells along an edge.
        width: channels of a cell.
        dim: width of the output.
    """

    def __init__(self, grid: int, width: int, dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, dim)
        self.heads = width // HEAD_WIDTH

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, grid, grid) -> (n, dim)."""
        cells = x.flatten(2).transpose(1, 2)
        # The mean comes first, and is a key and value too: OpenAI's position table has a row for it.
        cells = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positional_embedding
        query, key, value = self.q_proj(cells[:, :1]), self.k_proj(cells), self.v_proj(cells)
        heads = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        pooled = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.c_proj(pooled[:, 0])


class ModifiedResNet(nn.Module):
    """The image tower; its weights have OpenAI's names.

    Args:
        config: sizes.
    """

    def __init__(self, config: CLIPResNetConfig) -> None:
        super().__init__()
        width = config.width
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        stages, inputs = [], width
        for stage, blocks in enumerate(config.blocks):
            inside = width * 2**stage
            outputs = EXPANSION * inside
            others = [Bottleneck(outputs, inside, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(Bottleneck(inputs, inside, 2 if stage else 1), *others))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool(config.image_size // TOTAL_STRIDE, inputs, config.projection_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, image size, image size) -> (n, projection dim)."""
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        pooled: Tensor = self.attnpool(x)
        return pooled


class CLIPResNetModel(PreTrainedModel):
    """A dual encoder with the interface of `transformers.CLIPModel`.

    Args:
        config: sizes.
    """

    config_class = CLIPResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CLIPResNetConfig) -> None:
        super().__init__(config)
        self.vision_model = ModifiedResNet(config)
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**config.text_config))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AttentionPool):
            nn.init.normal_(module.positional_embedding, std=module.positional_embedding.shape[1] ** -0.5)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, image size, image size) -> (n, projection dim)."""
        features: Tensor = self.vision_model(pixel_values)
        return features

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(n, length) -> (n, projection dim)."""
        features: Tensor = self.text(input_ids=input_ids, attention_mask=attention_mask).text_embeds
        return features


AutoConfig.register(CLIPResNetConfig.model_type, CLIPResNetConfig, exist_ok=True)
AutoModel.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
