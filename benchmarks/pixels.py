"""Images of a folder to a model's input, beside the image processor of `transformers`: seconds for each step.

    python -m benchmarks.pixels [--images 64] [--rounds 5]

JPEGs of 500 x 375, CLIP's settings (224 pixels), one process. Then photos of 4000 x 3000, decoded whole and as by
`mclip-features --draft`. Medians of rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from benchmarks._clip import save_photos
from benchmarks._measure import medians_of_rounds, print_ratios
from mclip_fairseq.cli.features import DRAFT_SIDES
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.teacher import ImageTransform
from mclip_fairseq.storage.images import load_image

OURS, WHOLE, DRAFT = "ImageTransform", "decoded whole", "--draft"
LARGE, LARGE_PHOTOS, OCTAVES = (4000, 3000), 3, 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="images per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is taken")
    options = parser.parse_args()
    shield_torchaudio()
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor()
    transform = ImageTransform(processor)
    with tempfile.TemporaryDirectory() as folder:
        files = save_photos(Path(folder), options.images)
        images = [load_image(file) for file in files]
        assert torch.equal(transform(images), processor(images=images, return_tensors="pt")["pixel_values"])
        ways = {
            OURS: lambda: [transform([image]) for image in images],
            "the processor": lambda: [processor(images=[image], return_tensors="pt") for image in images],
            "decoding": lambda: [load_image(file) for file in files],
        }
        measured = medians_of_rounds(ways, options.rounds)
    print(f"{options.images} images; images a CPU second:", end=" ")
    print(", ".join(f"{name} {options.images / seconds.cpu:.0f}" for name, seconds in measured.items()))
    print_ratios(measured, OURS)
    measure_draft(transform, options.rounds)


def measure_draft(transform: ImageTransform, rounds: int) -> None:
    """Decode and transform large photos in both ways; print the seconds, and how much the pixels differ."""
    near = DRAFT_SIDES * transform([Image.new("RGB", (64, 64))]).shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        files = save_photos(Path(folder), LARGE_PHOTOS, *LARGE, OCTAVES)
        ways = {
            WHOLE: lambda: [transform([load_image(file)]) for file in files],
            DRAFT: lambda: [transform([load_image(file, near=near)]) for file in files],
        }
        measured = medians_of_rounds(ways, rounds)
        whole, draft = (torch.cat(way()) for way in ways.values())
    print(f"\n{LARGE_PHOTOS} photos of {LARGE[0]} x {LARGE[1]}; the pixels of {DRAFT} differ by", end=" ")
    print(f"{(draft - whole).abs().mean() / whole.std():.4f} standard deviations on average")
    print_ratios(measured, DRAFT)


if __name__ == "__main__":
    main()
