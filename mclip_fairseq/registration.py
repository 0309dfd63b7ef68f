"""Registers every component with fairseq; a new one needs a file in one of four folders, and nothing else."""

import importlib
import pkgutil

from mclip_fairseq.compat import hide_fairseq_warnings, shield_torchaudio
from mclip_fairseq.storage.checkpoints import allow_checkpoint_globals


def import_components(folder: str) -> None:
    """Import every module of a folder, which registers what it defines.

    Args:
        folder: `models`, `criterions`, `optim` or `tasks`.
    """
    package = importlib.import_module(f"mclip_fairseq.{folder}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not module.ispkg:
            importlib.import_module(module.name)


def register() -> None:
    """Register all components and install the patches of `resilience`; idempotent."""
    allow_checkpoint_globals()
    shield_torchaudio()
    hide_fairseq_warnings()
    for folder in ("models", "criterions", "optim", "tasks"):
        import_components(folder)
    from mclip_fairseq.resilience.install import install

    install()
