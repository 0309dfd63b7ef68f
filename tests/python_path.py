"""Where the processes of tests find their modules."""

import os
from pathlib import Path


def python_path() -> str:
    """PYTHONPATH with this checkout in front of what this process was given."""
    return os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
