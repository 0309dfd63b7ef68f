"""Which pairs the criterion of CCRK matches."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

from mclip_fairseq.criterions.ccrk import CCRKCriterion
from mclip_fairseq.criterions.terms import Batch
from mclip_fairseq.losses.pairs import Encoded
from mclip_fairseq.models.ccrk import CCRKModel

CAPTIONS = 2
DRAWS = 100
REPEATED, DISTINCT = [7, 7, 8, 9], [6, 7, 8, 9]


def mismatches(groups: list[int]) -> set[tuple[int, int]]:
    """(row of an image, row of the image whose caption it was shown with) of all negatives in many draws.

    The states of image r hold r; those of its captions, too.
    """
    criterion = CCRKCriterion(Namespace(), 1.0, 1.0, 1.0, "k", "probability")
    numbers = torch.arange(4.0)
    text = F.normalize(torch.randn(4 * CAPTIONS, 3), dim=1)
    encoded = Encoded(
        image=F.normalize(torch.randn(4, 3), dim=1),
        text=text,
        scale=torch.tensor(1.0),
        image_states=numbers.view(4, 1, 1),
        text_states=numbers.repeat_interleave(CAPTIONS).view(-1, 1, 1),
        padding=torch.zeros(4 * CAPTIONS, 1, dtype=torch.bool),
    )
    batch = Batch(rows=4, tokens=8, dummy=False, gather=True)
    seen = set()
    for _ in range(DRAWS):
        pairs = criterion.choose_pairs(batch, CAPTIONS, torch.tensor(groups), encoded)
        rows = zip(pairs.image_states.flatten().tolist(), pairs.text_states.flatten().tolist(), strict=True)
        for (image, caption), label in zip(rows, pairs.labels.tolist(), strict=True):
            assert label == (image == caption)
            if not label:
                seen.add((int(image), int(caption)))
    return seen


@pytest.mark.parametrize(("groups", "others"), [(DISTINCT, 12), (REPEATED, 10)])
def test_an_image_that_a_pre_training_batch_holds_twice_is_no_negative_of_itself(
    groups: list[int], others: int
) -> None:
    """Rows 0 and 1 are the same image in the second case, so that 2 of the 12 ordered pairs never come up."""
    seen = mismatches(groups)
    assert len(seen) == others
    assert ((0, 1) in seen, (1, 0) in seen) == ((True, True) if groups == DISTINCT else (False, False))


def test_the_scale_of_a_model_in_half_precision_is_float32() -> None:
    """1 / 0.001 times a batch of 100 would be infinite in float16."""
    half = Namespace(temp=torch.tensor(0.001, dtype=torch.float16))
    scale = CCRKModel.scale.__get__(half)
    assert scale.dtype == torch.float32
    assert scale > 900
