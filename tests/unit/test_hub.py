"""Files of published models: from directories by path, from the Hub through its client, None if there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from mclip_fairseq.storage.hub import published_file, published_folder, published_json


def test_files_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("a directory needs no Hub"))
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "folder.json").mkdir()
    assert published_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert published_json(str(tmp_path), "config.json") == {"a": 1}
    for name in ("broken.json", "folder.json", "absent.json"):
        assert published_json(str(tmp_path), name) is None


def test_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        calls.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert published_file("someone/model", "config.json", "v1") == tmp_path / "config.json"
    assert calls == [("someone/model", "config.json", "v1")]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("x"), HFValidationError("x"), OfflineModeIsEnabled("x")])
def test_what_the_hub_does_not_give_is_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert published_file("someone/model", "config.json") is None


def test_the_folder_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository} | options)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "file").touch()
    assert published_folder(tmp_path, ["*.json"]) == tmp_path
    for neither in (tmp_path / "file", tmp_path / "absent", "a/b/c"):
        assert published_folder(neither, ["*.json"]) is None
    assert not calls
    assert published_folder("user/repo", ["*.json"], "v1", fetch=False) == tmp_path / "snapshot"
    wanted = {"revision": "v1", "allow_patterns": ["*.json"], "local_files_only": True}
    assert calls == [{"repository": "user/repo"} | wanted]


def test_a_bug_in_the_client_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda: None)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        published_file("someone/model", "config.json")


@pytest.mark.parametrize("module", ["storage.hub", "cli.convert", "cli.export", "cli.extract_mte"])
def test_imports_are_light(module: str) -> None:
    code = f"import sys, mclip_fairseq.{module}; print(*{{'torch', 'fairseq', 'transformers'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
