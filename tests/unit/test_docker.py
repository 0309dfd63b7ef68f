"""The images install what CI pins; what they copy and the extras they name exist. Building one needs Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_an_image_installs_the_pins_of_what_exists(name: str, repository_root: Path) -> None:
    text = (repository_root / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    copied = [source for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for source in line.split()]
    assert {"constraints.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE", "mclip_fairseq"} <= set(copied)
    assert [source for source in copied if not (repository_root / source).exists()] == []
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert "PIP_CONSTRAINT=constraints.txt mclip-doctor --fix" in text
    project = tomllib.loads((repository_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (python,) = re.findall(r"^FROM python:(3\.\d+)-slim$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_the_images_differ_in_where_torch_comes_from(repository_root: Path) -> None:
    cpu, cuda = (
        [
            line
            for line in (repository_root / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        for name in ("cpu", "cuda")
    )
    differing = set(cpu) ^ set(cuda)
    assert differing
    assert all("torch" in line.lower() for line in differing)
