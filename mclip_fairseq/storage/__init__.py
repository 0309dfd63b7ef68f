"""The ground floor: files, images, feature directories, checkpoints and their seals, provenance.

Nothing here imports fairseq or the rest of the package, and transformers only inside `hub`'s functions.
"""

from mclip_fairseq.storage.errors import UserError

__all__ = ["UserError"]
