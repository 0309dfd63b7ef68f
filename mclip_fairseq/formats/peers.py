"""Models of other projects, told by the files they publish, as towers for `MultilingualCLIP`."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mclip_fairseq.data.hub import packed_dual_encoder, published_json
from mclip_fairseq.formats.m_clip import is_m_clip, load_m_clip
from mclip_fairseq.formats.towers import PairTower, TeacherTower, Tower
from mclip_fairseq.models.teacher import DualEncoderTeacher


def load_peer(source: str, teacher: str = "") -> Tower:
    """Load a model of another project.

    Args:
        source: Hub name or directory: of a dual encoder of `transformers` (CLIP, SigLIP, Chinese-CLIP, AltCLIP ...),
            also as sentence-transformers packs it, of a text tower of M-CLIP, or of sentence-transformers.
        teacher: image tower of a text tower; empty where images come as its features.

    Raises:
        ValueError: nothing usable there, or the image tower is not the one of the text tower.
    """
    config = published_json(source, "config.json")
    if config is not None and is_m_clip(config):
        return load_m_clip(source, config, teacher)
    packed = packed_dual_encoder(source) is not None
    if not packed and published_json(source, "modules.json") is not None:
        return load_sentence_transformer(source, teacher)
    if teacher:
        raise ValueError(f"{source}: has an image tower of its own; leave teacher out")
    return TeacherTower(source)


class SentenceText(nn.Module):
    """A text model of sentence-transformers.

    Args:
        model: `SentenceTransformer`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """Model inputs -> (texts, dim)."""
        embedding: Tensor = self.model({**inputs, "modality": "text"})["sentence_embedding"]
        return embedding


def load_sentence_transformer(source: str, teacher: str = "") -> PairTower:
    """Load a text model of sentence-transformers, whose space is that of an image tower.

    Args:
        source: Hub name or directory.
        teacher: see `load_peer`.

    Raises:
        ValueError: sentence-transformers is not installed, or cannot load it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"{source}: is a model of sentence-transformers, which is not installed: pip install mclip_fairseq[export]"
        ) from error
    try:
        model = SentenceTransformer(source, device="cpu").requires_grad_(False).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source}: cannot be loaded by sentence-transformers: {reason}") from error

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        return {name: value for name, value in model.preprocess(texts).items() if isinstance(value, Tensor)}

    images = DualEncoderTeacher.from_pretrained(teacher) if teacher else None
    padding = getattr(model.tokenizer, "pad_token_id", None) or 0
    name, dim = Path(source).name, int(model.get_embedding_dimension() or 0)
    return PairTower(SentenceText(model), tokenize, int(padding), name, images, dim)
