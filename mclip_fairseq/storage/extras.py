"""Optional dependencies: imported where they are used, with the extra to install when one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from mclip_fairseq.storage.errors import UserError


def import_extra(module: str, extra: str) -> Any:
    """Import a module that only an extra of this package installs.

    Args:
        module: such as `scipy.stats`.
        extra: name of the extra, such as `evaluate`.

    Returns:
        the module.

    Raises:
        UserError: it is not installed; the message says what to install. A module that is installed but fails on an
            import of its own keeps its traceback.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise UserError(f"{package} is not installed; run pip install 'mclip_fairseq[{extra}]'") from error
