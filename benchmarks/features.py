"""What `mclip-features` does once its model is loaded, beside the image tower alone on pixels that are ready.

    python -m benchmarks.features [--images 96] [--workers 0 2] [--rounds 3]

CLIP ViT-B/32 with random weights, JPEGs of 500 x 375, on the CPU. Decoding, preprocessing, encoding, hashing and
writing to a feature directory are all measured, in batches of 256, the default of the program; the tower alone takes
32 images at once, which suit a CPU. Medians of rounds in which the ways take turns, after one that does not count.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._clip import save_clip, save_photos
from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.encoding.bulk import BulkSettings, compute
from mclip_fairseq.encoding.images import ImageSource
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.images import MAX_PIXELS, load_image

BARE, BARE_BATCH, BATCH = "image tower alone", 32, 256


@torch.inference_mode()
def bare(teacher: DualEncoderTeacher, pixels: Tensor) -> None:
    """The image tower on pixels that are ready."""
    for batch in pixels.split(BARE_BATCH):
        teacher.encode_image(batch)


def features(
    teacher: DualEncoderTeacher,
    images: list[tuple[str, Path]],
    folder: Path,
    workers: int,
    number: itertools.count[int],
) -> None:
    """A new feature directory of these images."""
    encode = teacher.encoder("image", "joint")
    source = ImageSource(images, teacher.transform, encode, workers, MAX_PIXELS, hashed=True)
    writer = FeatureWriter(
        folder / str(next(number)),
        source.ids,
        teacher=teacher.identity,
        dim=teacher.dim,
        modality="image",
        normalized=False,
        preprocessing=source.preprocessing,
        dtype="float16",
        shard_rows=65536,
        settings={"inputs_content": source.content},
    )
    compute(source, writer, BulkSettings(BATCH), torch.device("cpu"))
    writer.finalize({})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96, help="images per round")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of threads that decode")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), itertools.count()
        teacher = DualEncoderTeacher.from_pretrained(save_clip(folder / "clip"))
        images = [(file.name, file) for file in save_photos(folder / "photos", options.images)]
        pixels = teacher.transform([load_image(file) for _, file in images])
        ways: dict[str, Callable[[], object]] = {BARE: partial(bare, teacher, pixels)}
        for workers in options.workers:
            ways[f"mclip-features, {workers} workers"] = partial(features, teacher, images, folder, workers, number)
        measured = medians_of_rounds(ways, options.rounds)
    print(f"{options.images} images, {torch.get_num_threads()} threads")
    print_ratios(measured, BARE)


if __name__ == "__main__":
    main()
