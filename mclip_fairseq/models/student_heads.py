"""From a student's pooled state to the teacher's space: the heads of M-CLIP and AltCLIP."""

from torch import Tensor, nn

HEADS = ("linear", "norm_linear", "tanh")


class NormLinear(nn.Module):
    """LayerNorm, then a linear layer (AltCLIP: `pre_LN` and `transformation`).

    Args:
        dim: width of the student.
        target_dim: width of what it predicts.
    """

    def __init__(self, dim: int, target_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, target_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, dim) -> (batch, target dim)."""
        predicted: Tensor = self.linear(self.norm(pooled))
        return predicted


class TanhHead(nn.Module):
    """Two linear layers with a tanh between them (the optional head of Multilingual-CLIP).

    Args:
        dim: width of the student, and of the hidden layer.
        target_dim: width of what it predicts.
    """

    def __init__(self, dim: int, target_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.linear = nn.Linear(dim, target_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, dim) -> (batch, target dim)."""
        predicted: Tensor = self.linear(self.hidden(pooled).tanh())
        return predicted


def student_head(kind: str, dim: int, target_dim: int) -> nn.Module:
    """The head of a kind of `HEADS`."""
    classes = {"linear": nn.Linear, "norm_linear": NormLinear, "tanh": TanhHead}
    head: nn.Module = classes[kind](dim, target_dim)
    return head
