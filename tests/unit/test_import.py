"""What importing the package does, and does not do, to the process."""

import subprocess
import sys
from pathlib import Path

CODE = """
import logging, sys
import mclip_fairseq
root = logging.getLogger()
assert root.level == logging.WARNING and not root.handlers, (root.level, root.handlers)
assert not any(name in sys.modules for name in ("transformers", "faiss", "matplotlib"))
from mclip_fairseq import MultilingualCLIP
assert not any(name in sys.modules for name in ("transformers", "faiss", "matplotlib"))
try:
    mclip_fairseq.nothing
except AttributeError as error:
    print(error)
"""


def test_importing_is_light_and_leaves_logging_alone(repository_root: Path) -> None:
    result = subprocess.run([sys.executable, "-c", CODE], cwd=repository_root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "has no attribute 'nothing'" in result.stdout
    assert result.stderr == ""
