"""What the benchmarks of search share: features of made-up images, and a model that only normalises them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.search.build import build_index
from mclip_fairseq.search.settings import ImageSettings, IndexSettings, ModelPaths
from mclip_fairseq.storage.feature_writer import FeatureWriter

SHARD_ROWS = 65536
CLUSTERS = 2000


class NoModel:
    """Takes features as joint-space vectors."""

    name = "made-up"
    fingerprint = "0" * 64
    languages: tuple[str, ...] = ()

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.identity: dict[str, Any] = {"teacher": {}}

    def encode_image_features(self, features: torch.Tensor, batch_size: int = 1, normalize: bool = True) -> Any:
        """(n, dim) normalised."""
        return torch.nn.functional.normalize(features.float(), dim=1)


def made_up(count: int, dim: int, seed: int) -> np.ndarray:
    """(count, dim) vectors in clusters, as those of images are; float32, not normalised."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    vectors += centres[rng.integers(0, CLUSTERS, count)]
    return vectors


def make_features(folder: Path, count: int, dim: int) -> Path:
    """A feature directory of made-up images `000000.jpg` and so on."""
    ids = [f"{number:07d}.jpg" for number in range(count)]
    writer = FeatureWriter(
        folder, ids, teacher={"name": "made-up"}, dim=dim, modality="image", normalized=False, shard_rows=SHARD_ROWS
    )
    for shard in writer.pending():
        writer.write(shard, made_up(len(writer.inputs(shard)), dim, seed=shard + 1))
    writer.finalize()
    return folder


def build_made_up(features: Path, output: Path, kind: str, dim: int, images_root: Path | None = None) -> None:
    """`mclip-search build` over features of `make_features`."""
    images = ImageSettings(features, images_root)
    build_index(output, images, IndexSettings(kind), lambda: NoModel(dim), ModelPaths("made-up"), [], ["benchmark"])
