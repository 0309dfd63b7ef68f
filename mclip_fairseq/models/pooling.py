"""From token states to one vector a sentence."""

import torch
from torch import Tensor


def pool_first(states: Tensor, padding: Tensor) -> Tensor:
    """The state of the first real token, `<s>`, whichever side the padding is on.

    Args:
        states: (batch, length, dim).
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, dim).
    """
    first = (~padding).to(torch.uint8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), first]


def pool_last(states: Tensor, padding: Tensor) -> Tensor:
    """The state of the last real token, `</s>`, whichever side the padding is on.

    Args:
        states: (batch, length, dim).
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, dim).
    """
    # argmax finds the first True: of the reversed mask, that is the last token from the end.
    last = padding.shape[1] - 1 - (~padding).flip(1).to(torch.uint8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last]


def pool_mean(states: Tensor, padding: Tensor) -> Tensor:
    """Mean of the token states that are not padding.

    Args:
        states: (batch, length, dim).
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, dim) of the states' dtype.
    """
    kept = (~padding).unsqueeze(2)
    # In half precision, a count beyond 256 would be rounded.
    wide = torch.promote_types(states.dtype, torch.float32)
    total = (states * kept.to(states.dtype)).sum(1, dtype=wide)
    return (total / kept.sum(1, dtype=wide).clamp(min=1)).to(states.dtype)


def pad_rows(rows: Tensor, padding: Tensor) -> Tensor:
    """States of sentences back to back, as a padded batch; the device need not be waited for.

    Args:
        rows: (tokens of all sentences, dim).
        padding: (batch, length) bool, True at pads.

    Returns:
        (batch, length, dim), zero at pads.
    """
    place = ((~padding).flatten().cumsum(0) - 1).clamp(min=0)
    return rows.index_select(0, place).view(*padding.shape, -1).masked_fill(padding[:, :, None], 0)


POOLING = {"mean": pool_mean, "first": pool_first, "last": pool_last}
