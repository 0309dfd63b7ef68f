"""Division of a user's images into splits, by a share and a seed."""

import hashlib
from collections.abc import Mapping, Sequence

from corpora.captions import TRAIN
from mclip_fairseq.storage.errors import UserError

DEFAULT = {"valid": 0.1, "test": 0.1}


def parse_shares(options: Sequence[str]) -> dict[str, float]:
    """Split -> share of the images, from `valid=0.1 test=0.1`.

    Raises:
        UserError: an option has a different form, or nothing would be left to train on.
    """
    shares: dict[str, float] = {}
    for option in options:
        split, _, number = option.partition("=")
        try:
            shares[split] = float(number)
        except ValueError as error:
            raise UserError(f"--ratio {option}: write it as SPLIT=SHARE, such as valid=0.1") from error
        if not split or split == TRAIN or not 0 <= shares[split] < 1:
            raise UserError(f"--ratio {option}: name a split other than train and a share from 0 to below 1")
    if sum(shares.values()) >= 1:
        raise UserError(f"--ratio {' '.join(options)}: leaves no image to train on; give less than 1 in all")
    return shares


def divide(splits: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Move a share of the images of train into other splits.

    All captions of an image stay together. Which images move depends on their ids and the seed only, not on their
    order, and few change their split when images are added.

    Args:
        splits: image -> split.
        shares: split -> share of the images of train; a share above 0 moves at least one.
        seed: of the choice.

    Returns:
        image -> new split, for the images that move.

    Raises:
        UserError: a split has images already, or too few are left.
    """
    images = [image for image, split in splits.items() if split == TRAIN]
    images.sort(key=lambda image: hashlib.sha256(f"{seed}\t{image}".encode()).digest())
    moved: dict[str, str] = {}
    taken = 0
    for split, share in shares.items():
        if share and split in splits.values():
            raise UserError(f"--ratio {split}={share}: the data have images of {split} already; leave this out")
        count = max(1, round(share * len(images))) if share else 0
        moved |= dict.fromkeys(images[taken : taken + count], split)
        taken += count
    if images and taken >= len(images):
        given = " ".join(f"{split}={share}" for split, share in shares.items())
        raise UserError(f"too few images ({len(images)}) for --ratio {given}; add images, or give --ratio valid=0")
    return moved
