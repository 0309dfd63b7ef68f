"""What every text encoder here offers: token states from ids, freezing, an identity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mclip_fairseq.models.freezing import state_hash


class TextEncoder(nn.Module):
    """Token ids to the states of the last layer.

    Attributes:
        encoder: the module of fairseq or `transformers` with the weights.
        kind: the architecture, for identities.
    """

    encoder: Any
    kind: str
    _hashed: tuple[list[tuple[int, int]], str] | None = None  # versions of the weights, and their hash

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a token state."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Longest input in tokens, those that start and end a text included."""

    @property
    @abstractmethod
    def padding_idx(self) -> int:
        """Id of a pad."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module] | nn.ModuleList:
        """The layers, from the first to the last; each returns its states alone, or first in a tuple."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The encoder in a few words, for model cards."""

    @property
    def languages(self) -> list[str]:
        """Languages it was strengthened on before this training; empty if unknown."""
        return []

    @abstractmethod
    def embedding_modules(self) -> list[nn.Module]:
        """What is before the first layer."""

    @abstractmethod
    def states(self, tokens: Tensor) -> Tensor:
        """(batch, length) ids -> (batch, length, dim) states of the last layer."""

    @abstractmethod
    def plain_module(self) -> Any:
        """The encoder as a module of `transformers`, adapters included, with equal states."""

    @abstractmethod
    def store_sizes(self, cfg: Any) -> None:
        """Write its sizes into a model configuration, so that its checkpoint needs no archive to rebuild."""

    def freeze(self, what: str) -> None:
        """Freeze `all`, the `embeddings`, or `none`."""
        frozen: dict[str, list[nn.Module]] = {"all": [self], "embeddings": self.embedding_modules(), "none": []}
        for module in frozen[what]:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode; a frozen encoder stays in eval mode, so that its states have no dropout."""
        return super().train(mode and not self.frozen)

    @property
    def frozen(self) -> bool:
        """Whether nothing here is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Token states of the last layer.

        Args:
            tokens: (batch, length) ids.

        Returns:
            (batch, length, dim); states of pad positions are meaningless.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.states(tokens)

    def identity(self) -> dict[str, str]:
        """Identity of the current weights, without a path; frozen weights are hashed once, not once per data set."""
        state = self.encoder.state_dict()
        versions = [(tensor.data_ptr(), tensor._version) for tensor in state.values()]
        if self._hashed is None or self._hashed[0] != versions or not self.frozen:
            self._hashed = versions, state_hash(state)
        return {"architecture": self.kind, "sha256": self._hashed[1]}
