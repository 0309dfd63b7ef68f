"""Models of other projects, recognised by the files they publish, as towers for `MultilingualCLIP`."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mclip_fairseq.formats.m_clip import is_m_clip, load_m_clip
from mclip_fairseq.formats.pair_tower import PairTower
from mclip_fairseq.formats.towers import TeacherTower, Tower
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.hub import packed_dual_encoder, published_json
from mclip_fairseq.storage.self_contained import check_self_contained


def load_peer(source: str, teacher: str = "") -> Tower:
    """Load a model of another project.

    Args:
        source: Hub name or directory of a dual encoder of `transformers` (CLIP, SigLIP, Chinese-CLIP, AltCLIP ...),
            which sentence-transformers may have packed, or of a text encoder of M-CLIP or sentence-transformers; or
            an XLM-R archive of fairseq, whose texts can be compared with each other.
        teacher: image tower of a text encoder; empty if images come as its features.

    Raises:
        UserError: the source holds no such model, or the image tower does not belong to the text encoder.
    """
    if (Path(source) / "model.pt").is_file():
        from mclip_fairseq.formats.xlmr_archive import load_archive  # needs fairseq, as no other model here does

        return load_archive(Path(source))
    config = published_json(source, "config.json")
    if is_m_clip(config):
        return load_m_clip(source, config, teacher)
    packed = packed_dual_encoder(source) is not None
    if not packed and published_json(source, "modules.json") is not None:
        return load_sentence_transformer(source, teacher)
    if teacher:
        raise UserError(f"{source}: has an image tower of its own; omit teacher")
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
    """Load a text model of sentence-transformers that was trained for the space of an image tower.

    Args:
        source: Hub name or directory.
        teacher: Hub name or directory of the image tower; empty if images come as its features.

    Raises:
        UserError: sentence-transformers is not installed, or cannot load it, or the source names something outside it.
    """
    library = import_extra("sentence_transformers", "export")
    check_self_contained(source)
    local = Path(source).is_dir()
    try:
        model = library.SentenceTransformer(source, device="cpu", trust_remote_code=False, local_files_only=local)
    except Exception as error:  # its loaders raise whatever damaged files lead them to
        raise UserError(f"{source}: cannot be loaded by sentence-transformers: {first_line(error)}") from error

    model.requires_grad_(False).eval()

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        return {name: value for name, value in model.preprocess(texts).items() if isinstance(value, Tensor)}

    images = DualEncoderTeacher.from_pretrained(teacher) if teacher else None
    padding = getattr(model.tokenizer, "pad_token_id", None) or 0
    name, dim = Path(source).name, int(model.get_embedding_dimension() or 0)
    return PairTower(SentenceText(model), tokenize, int(padding), name, images, dim, model.tokenizer)
