"""Hits of text queries in the order of a model that looks at the text and each image together (CCRK)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mclip_fairseq.search.engine import Hit, Index
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import ImageError, load_image

if TYPE_CHECKING:
    from torch import Tensor

# Images whose states are kept: 100 MB at 50 tokens of 1,024 dimensions.
KEPT = 1000


class Reranker:
    """Puts the first k hits of each query in the order of their matching scores; the others stay behind them.

    Args:
        index: knows where the images are.
        model: of the index.
        k: hits of each query that are looked at.

    Raises:
        UserError: the model compares features only, or the index does not know where its images are.
    """

    def __init__(self, index: Index, model: Any, k: int) -> None:
        if not model.can_match:
            raise UserError(f"{index.path}: its model compares features only and cannot re-rank; leave out --rerank")
        if any(index.picture(row) is None for row in index.samples(1)):
            raise UserError(f"{index.path}: does not know where its images are; build it with --images-root")
        self.model = model
        self.k = k
        self.states: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, index: Index, texts: Sequence[str], hits: Sequence[list[Hit]]) -> list[list[Hit]]:
        """Reorder the hits of each query.

        Args:
            index: that gave the hits.
            texts: the queries.
            hits: of each query, best first.

        Returns:
            the same hits, those looked at with their `match`; an image that can no longer be read comes behind them.
        """
        import torch

        from mclip_fairseq.encoding.matching import PairScorer

        answers = []
        for text, found in zip(texts, hits, strict=True):
            candidates = [(hit, self.state(index, hit)) for hit in found[: self.k]]
            states = [state for _, state in candidates if state is not None]
            scores: list[float] = []
            if states:
                columns = torch.arange(len(states))
                scores = PairScorer(self.model, [text], torch.stack(states))(columns * 0, columns).tolist()
            readable = [hit for hit, state in candidates if state is not None]
            matched = [replace(hit, match=score) for hit, score in zip(readable, scores, strict=True)]
            # Stable: of two equal scores the nearer image stays first.
            order = sorted(range(len(matched)), key=lambda number: -scores[number])
            unreadable = [hit for hit, state in candidates if state is None]
            answers.append([*(matched[number] for number in order), *unreadable, *found[self.k :]])
        return answers

    def state(self, index: Index, hit: Hit) -> Tensor | None:
        """The states of an image, (tokens, dim) float16; None where it can no longer be read."""
        from mclip_fairseq.encoding.matching import encode_image_states

        name = f"{index.stamp}/{index.address(hit.row)}"
        if name in self.states:
            self.states.move_to_end(name)
            return self.states[name]
        path = index.picture(hit.row)
        try:
            image = None if path is None else load_image(path)
        except ImageError:
            image = None
        if image is None:
            return None
        self.states[name] = encode_image_states(self.model, [image])[0]
        if len(self.states) > KEPT:
            self.states.popitem(last=False)
        return self.states[name]
