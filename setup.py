"""What pyproject.toml cannot say: `fairseq-train --user-dir mclip_fairseq` finds an editable install from any folder.

fairseq looks for `--user-dir` in the working directory and beside itself, that is, in site-packages. An ordinary
install is there. An editable one gets a package that leads to the checkout.
"""

import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from mclip_fairseq.storage.wheels import rewrite_wheel  # noqa: E402  # needs the path above
from mclip_fairseq.user_dir import signpost  # noqa: E402


class EditableWheel(editable_wheel):
    """Adds the signpost to the wheel of an editable install."""

    def run(self) -> None:
        """Build the wheel, then add the package."""
        folder = Path(self.dist_dir)
        before: set[Any] = set(folder.glob("*.whl"))
        super().run()
        content = signpost(str(ROOT / "mclip_fairseq")).encode("utf-8")
        for wheel in set(folder.glob("*.whl")) - before:
            rewrite_wheel(wheel, {"mclip_fairseq/__init__.py": content})


setup(cmdclass={"editable_wheel": EditableWheel})
