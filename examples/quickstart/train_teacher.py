#!/usr/bin/env python3
"""Train the quickstart's English teacher from scratch: a small CLIP that `transformers` loads like any other.

Image tower: a small residual network. Text tower: one causal transformer layer over WordPieces, as in CLIP.
Loss: `mclip_fairseq.losses.symmetric_info_nce`, where all drawings of a concept are positives of its name. Trains on
CORPUS/captions/train.en, its .ids file and the drawings they name, and prints retrieval among CORPUS/captions/valid.en
at the end. tune_teacher.py then teaches the text tower more words.

The output directory holds weights, image processor and tokenizer for `AutoModel`, `AutoImageProcessor` and
`AutoTokenizer`.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.losses import symmetric_info_nce
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines

SIZE = 48  # pixels along an edge of the input
CHANNELS = (24, 48, 96, 192)  # of the stages of the residual network, each of one block
DIM = 128  # of the text tower and of the joint space
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
LONGEST = 32  # tokens
WHITE = 1.0  # value of a white pixel after the image processor
MAX_SCALE = 100.0
SCALE_LEARNS_FASTER = 3.0
# Augmentation: rotation in radians, logarithm of the zoom, shift as a share of the width, relative colours.
ROTATION, ZOOM, SHIFT, COLOUR = 0.2, 0.2, 0.1, 0.3


@dataclass(frozen=True)
class Captions:
    """Drawings and their names.

    Attributes:
        images: image ids, which are paths below the image folder of the corpus.
        concepts: what they show.
        names: English names.
    """

    images: list[str]
    concepts: list[str]
    names: list[str]


def load_split(corpus: Path, split: str) -> Captions:
    """Read `captions/SPLIT.en` and its ids.

    Raises:
        UserError: a file is missing or not as build_corpus.py writes it.
    """
    path = corpus / "captions" / f"{split}.en"
    names = read_lines(path)
    ids = [line.split("\t") for line in read_lines(f"{path}.ids")]
    if len(ids) != len(names) or any(len(columns) != 2 for columns in ids):
        raise UserError(
            f"{path}.ids: needs an image id, a tab and a concept for every line of {path}; run build_corpus.py"
        )
    return Captions([image for image, _ in ids], [concept for _, concept in ids], names)


def build_tokenizer(names: Sequence[str]) -> Any:
    """A WordPiece tokenizer whose pieces are the words of the names, and letters for all other words.

    The trainers in `tokenizers` produce different pieces in every process, hence a different teacher.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for name in names for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(name))}
    letters = sorted({letter for word in words for letter in word})
    pieces = dict.fromkeys([*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters), *sorted(words)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(token, tokenizer.token_to_id(token)) for token in (SPECIAL["bos_token"], SPECIAL["eos_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST, **SPECIAL)


def build_processor() -> Any:
    """Resize to SIZE x SIZE and map white to 1, black to -1."""
    from transformers import CLIPImageProcessor

    edge = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(
        size=edge, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )


def build_model(tokenizer: Any) -> Any:
    """The dual encoder, with random weights.

    The residual network is the backbone of `DPTModel`, the one image model in `transformers` that wraps one and returns
    a flat vector. `ResNetModel` itself has a pooled output of shape (n, channels, 1, 1), which a dual encoder cannot
    project.
    """
    from transformers import CLIPTextConfig, DPTConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    edge = -(-SIZE // 32)  # of the last feature map
    residual = {
        "model_type": "resnet",
        "embedding_size": CHANNELS[0],
        "hidden_sizes": list(CHANNELS),
        "depths": [1] * len(CHANNELS),
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    }
    vision = DPTConfig(
        is_hybrid=True,
        backbone_config=residual,
        backbone_featmap_shape=[1, CHANNELS[-1], edge, edge],
        image_size=SIZE,
        patch_size=SIZE // edge,
        hidden_size=CHANNELS[-1],
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_act="linear",
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=2 * DIM,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # exp(2.3) = 10: a scale that an untrained network can use.
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=DIM, logit_scale_init_value=2.3
    )
    model = VisionTextDualEncoderModel(config)
    pool_by_averaging(model.vision_model)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def pool_by_averaging(vision: Any) -> None:
    """Set the transformer layer after the residual network to average over positions, and freeze it.

    The first token starts at zero, attends equally to all positions, and so becomes the mean of their normalised
    features.
    """
    layer = vision.encoder.layer[0]
    for linear in (layer.attention.attention.value, layer.attention.output.dense, vision.pooler.dense):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    for linear in (layer.attention.attention.query, layer.output.dense):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.orthogonal_(vision.embeddings.projection.weight.view(CHANNELS[-1], CHANNELS[-1]))
    for part in (vision.encoder, vision.layernorm, vision.pooler):
        part.requires_grad_(False)
    vision.embeddings.cls_token.requires_grad_(False)
    vision.embeddings.position_embeddings.requires_grad_(False)


def load_pixels(corpus: Path, images: Sequence[str], processor: Any) -> Tensor:
    """(n, 3, SIZE, SIZE) float32."""
    parts = []
    for start in range(0, len(images), 256):
        pictures = []
        for image in images[start : start + 256]:
            with Image.open(corpus / "images" / image) as picture:
                pictures.append(picture.convert("RGB"))
        parts.append(processor(images=pictures, return_tensors="pt")["pixel_values"])
    return torch.cat(parts)


def augment(pixels: Tensor) -> Tensor:
    """Rotate, zoom, stretch and shift each drawing, and jitter its saturation, contrast and colour balance.

    Args:
        pixels: (n, 3, SIZE, SIZE) float32.

    Returns:
        the same shape.
    """
    count = len(pixels)

    def around(width: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape) * 2 - 1) * width

    angle, zoom, stretch = around(ROTATION), around(ZOOM).exp(), around(ZOOM / 2).exp()
    shift = around(2 * SHIFT, 2)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [torch.stack([cos * stretch, -sin, shift[:, 0]], 1), torch.stack([sin, cos / stretch, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    # grid_sample pads with 0, so work on the distance from white: the padding is then white.
    ink = F.grid_sample(WHITE - pixels, grid, align_corners=False)
    grey = ink.mean(1, keepdim=True)
    ink = grey + (ink - grey) * (1 + around(1.5 * COLOUR, 1, 1, 1))
    return WHITE - ink * (1 + around(COLOUR / 2, 3, 1, 1)) * (1 + around(COLOUR, 1, 1, 1))


def batches(concepts: Sequence[str], size: int, epochs: int) -> Iterator[list[int]]:
    """Rows of all drawings of `size` concepts at a time, in a new random order each epoch."""
    rows: dict[str, list[int]] = {}
    for row, concept in enumerate(concepts):
        rows.setdefault(concept, []).append(row)
    for _ in range(epochs):
        order = random.sample(sorted(rows), len(rows))
        for start in range(0, len(order) - size + 1, size):
            yield [row for concept in order[start : start + size] for row in rows[concept]]


def embed(model: Any, tokenizer: Any, pixels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(n, DIM) normalised features of drawings and of names; each distinct name is encoded once."""
    distinct = sorted(set(names))
    place = {name: number for number, name in enumerate(distinct)}
    tokens = tokenizer(distinct, padding=True, truncation=True, return_tensors="pt")
    text = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    image = model.get_image_features(pixels.contiguous(memory_format=torch.channels_last)).pooler_output
    return F.normalize(image, dim=1), F.normalize(text, dim=1)[[place[name] for name in names]]


def train(model: Any, tokenizer: Any, data: Captions, pixels: Tensor, options: argparse.Namespace) -> None:
    """Train in place."""
    steps = list(batches(data.concepts, options.batch_size, options.epochs))
    number = {concept: index for index, concept in enumerate(sorted(set(data.concepts)))}
    concepts = torch.tensor([number[concept] for concept in data.concepts])
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for _, weight in trained if weight.ndim > 1]
    vectors = [weight for name, weight in trained if weight.ndim == 1 and name != "logit_scale"]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0.0},
            {"params": [model.logit_scale], "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    rates = [options.lr, options.lr, SCALE_LEARNS_FASTER * options.lr]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=len(steps), pct_start=0.05, cycle_momentum=False, div_factor=100
    )
    model.train()
    with tqdm(steps, desc="teacher", unit="step", mininterval=5) as progress:
        for rows in progress:
            image, text = embed(model, tokenizer, augment(pixels[rows]), [data.names[row] for row in rows])
            positives = concepts[rows, None] == concepts[rows]
            scale = model.logit_scale.exp().clamp(max=MAX_SCALE)
            loss = symmetric_info_nce(image, text, scale, positives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", scale=f"{scale.item():.1f}", refresh=False)
    model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--corpus", type=Path, required=True, help="output of build_corpus.py")
    parser.add_argument("--output", type=Path, required=True, help="directory for the teacher")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the concepts (default: 60)")
    parser.add_argument("--batch-size", type=int, default=128, help="concepts per step (default: 128)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, order and augmentation (default: 1)")
    options = parser.parse_args(argv)
    return run_main("train_teacher.py", lambda: make_teacher(options))


def make_teacher(options: argparse.Namespace) -> None:
    """Train the teacher, save it, and print its retrieval on the validation drawings."""
    shield_torchaudio()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    start = time.monotonic()
    data, valid = load_split(options.corpus, "train"), load_split(options.corpus, "valid")
    processor = build_processor()
    pixels, valid_pixels = (load_pixels(options.corpus, part.images, processor) for part in (data, valid))
    tokenizer = build_tokenizer(data.names)
    model = build_model(tokenizer)
    train(model, tokenizer, data, pixels, options)
    for part in (model, tokenizer, processor):
        part.save_pretrained(options.output)
    with torch.no_grad():
        image, text = embed(model, tokenizer, valid_pixels, valid.names)
    metrics = retrieval_metrics(text, image, torch.arange(len(text)))
    print(
        f"{options.output}: {sum(weight.numel() for weight in model.parameters()):,} parameters, "
        f"{time.monotonic() - start:.0f} s; on {len(text)} unseen drawings by the same artists: "
        f"R@1 {metrics['t2i_R@1']:.1f}, R@10 {metrics['t2i_R@10']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
