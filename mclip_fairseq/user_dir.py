"""Lets `fairseq --user-dir` accept every path to this package, and registers the plugin when fairseq asks.

If a package of this name is already imported, `fairseq.utils.import_user_module` does not import its `tasks/` and
`models/`: it only checks that the absolute path of `--user-dir` is in the package's `__path__`, compared as strings. It
would refuse the same directory reached through a link, or through `..` (which fairseq itself writes for an installed
package), as "not globally unique"; and a package that was imported only for its losses would register nothing.
"""

from __future__ import annotations

import importlib
import os


class PackagePath(list[str]):
    """A package's `__path__` in which `path in __path__` compares directories instead of strings.

    On a match the plugin is registered, because only fairseq's `--user-dir` asks. Iteration, length and order
    are those of a list, so the import system works as before.
    """

    def __contains__(self, path: object) -> bool:
        """Whether a path leads to one of the directories; registers the plugin if so."""
        if not isinstance(path, str | os.PathLike):
            return False
        real = os.path.realpath(path)
        same = super().__contains__(path) or any(os.path.realpath(entry) == real for entry in self)
        if same:
            importlib.import_module("mclip_fairseq.tasks")
        return same
