"""Models of other projects, told by the files they publish, as towers for `MultilingualCLIP`."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from mclip_fairseq.formats.m_clip import is_m_clip, load_m_clip
from mclip_fairseq.formats.towers import PairTower, TeacherTower, Tower
from mclip_fairseq.models.pooling import pool_mean
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.xlmr_encoder import XLMREncoder
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.hub import packed_dual_encoder, published_json


def load_peer(source: str, teacher: str = "") -> Tower:
    """Load a model of another project.

    Args:
        source: Hub name or directory: of a dual encoder of `transformers` (CLIP, SigLIP, Chinese-CLIP, AltCLIP ...),
            also as sentence-transformers packs it, of a text tower of M-CLIP, or of sentence-transformers; or an
            XLM-R archive of fairseq, whose texts can be compared with each other.
        teacher: image tower of a text tower; empty where images come as its features.

    Raises:
        UserError: nothing usable there, or the image tower is not the one of the text tower.
    """
    if (Path(source) / "model.pt").is_file():
        return load_encoder(Path(source))
    config = published_json(source, "config.json")
    if is_m_clip(config):
        return load_m_clip(source, config, teacher)
    packed = packed_dual_encoder(source) is not None
    if not packed and published_json(source, "modules.json") is not None:
        return load_sentence_transformer(source, teacher)
    if teacher:
        raise UserError(f"{source}: has an image tower of its own; leave teacher out")
    return TeacherTower(source)


class MeanOfStates(nn.Module):
    """An XLM-R whose sentence embedding is the mean of its states, as MTE contrasts them.

    Args:
        encoder: with its weights.
    """

    def __init__(self, encoder: XLMREncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, length) ids -> (texts, dim)."""
        return pool_mean(self.encoder(input_ids), attention_mask.eq(0))


def load_encoder(archive: Path) -> PairTower:
    """Load a text encoder alone: `mclip-extract-mte` writes such an archive.

    Args:
        archive: directory with `model.pt`, `dict.txt` and the SentencePiece model.

    Raises:
        UserError: a file is missing or of another kind.
    """
    tokenizer = XLMRTokenizer(archive)
    padding = tokenizer.dictionary.pad()
    encoder = XLMREncoder.from_checkpoint(archive, tokenizer.dictionary)
    encoder.freeze("all")

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(texts)
        return {"input_ids": tokens, "attention_mask": tokens.ne(padding).long()}

    return PairTower(MeanOfStates(encoder), tokenize, padding, archive.resolve().name, None, encoder.dim)


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
        UserError: sentence-transformers is not installed, or cannot load it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"{source}: is a model of sentence-transformers, which is not installed: pip install mclip_fairseq[export]"
        ) from error
    try:
        model = SentenceTransformer(source, device="cpu", trust_remote_code=False).requires_grad_(False).eval()
    except Exception as error:  # its loaders raise whatever broken files lead them to
        raise UserError(f"{source}: cannot be loaded by sentence-transformers: {first_line(error)}") from error

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        return {name: value for name, value in model.preprocess(texts).items() if isinstance(value, Tensor)}

    images = DualEncoderTeacher.from_pretrained(teacher) if teacher else None
    padding = getattr(model.tokenizer, "pad_token_id", None) or 0
    name, dim = Path(source).name, int(model.get_embedding_dimension() or 0)
    return PairTower(SentenceText(model), tokenize, int(padding), name, images, dim)
