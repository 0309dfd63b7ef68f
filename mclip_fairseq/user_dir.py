"""Lets ``fairseq --user-dir`` accept every path that leads to this package, and registers it when fairseq asks.

When a package of this name is already imported, ``fairseq.utils.import_user_module`` does not import its ``tasks/`` and
``models/``: it only checks that the absolute path of ``--user-dir`` is in the package's ``__path__``, compared as
strings. The same directory reached through a link, or through ``..`` as fairseq itself writes it for an installed
package, would be refused as "not globally unique", and a package that was imported for its losses alone would register
nothing.
"""

from __future__ import annotations

import importlib
import os


class PackagePath(list[str]):
    """A package's ``__path__`` in which ``path in __path__`` asks whether both are the same directory.

    A positive answer registers the plugin: the question is fairseq's ``--user-dir``. Iteration, length and order are a
    list's, so the import system sees nothing new::

        __path__ = PackagePath(__path__)
    """

    def __contains__(self, path: object) -> bool:
        """Whether ``path`` leads to one of the directories; a path that does not exist leads to none."""
        if not isinstance(path, str | os.PathLike):
            return False
        real = os.path.realpath(path)
        found = super().__contains__(path) or any(os.path.realpath(entry) == real for entry in self)
        if found:
            importlib.import_module("mclip_fairseq.tasks")
        return found
