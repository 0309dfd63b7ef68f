"""From a student's pooled state to the teacher's space: the heads of M-CLIP, AltCLIP and METAL."""

from torch import Tensor, nn

HEADS = ("linear", "linear_2", "linear_3", "linear_4", "norm_linear", "tanh")


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


class LinearLayers(nn.Module):
    """Linear layers in a row, with nothing between them (METAL, arXiv 2601.10096).

    Args:
        layers: how many.
        dim: width of the student, and of all layers but the last.
        target_dim: width of what it predicts.
    """

    def __init__(self, layers: int, dim: int, target_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*(nn.Linear(dim, dim) for _ in range(layers - 1)))
        self.linear = nn.Linear(dim, target_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, dim) -> (batch, target dim)."""
        predicted: Tensor = self.linear(self.hidden(pooled))
        return predicted


def student_head(kind: str, dim: int, target_dim: int) -> nn.Module:
    """The head of a kind of `HEADS`."""
    classes = {"linear": nn.Linear, "norm_linear": NormLinear, "tanh": TanhHead}
    if kind not in classes:
        return LinearLayers(int(kind.removeprefix("linear_")), dim, target_dim)
    head: nn.Module = classes[kind](dim, target_dim)
    return head
