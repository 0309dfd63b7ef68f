"""Fingerprints of models: whether what two models compute can be compared."""

HALF = 32  # hexadecimal digits: the first half is of the text side, the second of the image side
NO_IMAGE_TOWER = "0" * HALF


def same_vectors(one: str, other: str) -> bool:
    """Whether two fingerprints are of models that compute the same vectors.

    A model whose image tower is not on this machine still encodes texts: only the first half is compared then.
    """
    if one == other:
        return True
    unknown = NO_IMAGE_TOWER in (one[HALF:], other[HALF:])
    return unknown and text_side(one) == text_side(other)


def text_side(fingerprint: str) -> str:
    """What stands for the text side in a fingerprint."""
    return fingerprint[:HALF] if len(fingerprint) == 2 * HALF else fingerprint
