"""The ground floor: files, images, feature directories, checkpoints and their seals, provenance.

Nothing here imports fairseq, transformers, or the rest of the package.
"""

from mclip_fairseq.storage.errors import UserError

__all__ = ["UserError"]
