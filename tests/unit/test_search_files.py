"""Index directories that were altered, damaged, or made to do harm."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq.cli.search import load_model, read_texts
from mclip_fairseq.encoding import bulk
from mclip_fairseq.search import sources
from mclip_fairseq.search.bank import read_labelled
from mclip_fairseq.search.build import build_index
from mclip_fairseq.search.files import locked, read_index_manifest
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import faiss
from mclip_fairseq.search.presenting import read_pairs
from mclip_fairseq.search.settings import ImageSettings, IndexSettings, ModelPaths
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256
from tests.colours import ColourModel, draw_colours


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # a busy disk would add seconds
    images = ImageSettings(draw_colours(tmp_path / "photos"), batch_size=4)
    build_index(tmp_path / "index", images, IndexSettings(), ColourModel, ModelPaths("m"), [], ["test"])
    return tmp_path / "index"


def edit(index: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((index / "index.json").read_text(encoding="utf-8"))
    change(manifest)
    (index / "index.json").write_text(json.dumps(manifest), encoding="utf-8")


def put(index: Path, part: str, content: bytes) -> None:
    """Replace a file and its hash, as the author of an index can."""
    (index / "replaced").write_bytes(content)
    entry = {"file": "replaced", "sha256": file_sha256(index / "replaced")}
    edit(index, lambda manifest: manifest["files"].update({part: entry}))


def test_images_are_encoded_where_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the CPU beside a model on a GPU: processes would not decode for it, and each batch would be waited for."""
    asked: list[tuple[torch.device, str]] = []

    def compute(source: Any, writer: Any, settings: Any, device: torch.device) -> None:
        asked.append((device, settings.dtype))
        bulk.compute(source, writer, replace(settings, dtype="float32"), torch.device("cpu"))

    monkeypatch.setattr(sources, "compute", compute)
    model, entry = ColourModel(), {"name": "colours", "fingerprint": "0" * 64}
    images = ImageSettings(draw_colours(tmp_path / "photos"), batch_size=4, dtype="bfloat16")
    gallery, _ = sources.open_gallery(images)
    model.device = torch.device("meta")
    store = sources.encode_images(gallery, model, entry, tmp_path / "vectors", images)  # type: ignore[arg-type]
    assert asked == [(torch.device("meta"), "bfloat16")]
    assert len(store) == 8
    with pytest.raises(UserError, match="was started with a different preprocessing"):
        sources.encode_images(gallery, model, entry, tmp_path / "vectors", replace(images, dtype="float32"))  # type: ignore[arg-type]


def test_a_lower_precision_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="--dtype bfloat16 needs a GPU"):
        load_model(ModelPaths("m"), Namespace(device="cpu", dtype="bfloat16"))


def test_an_index_opens(index: Path) -> None:
    opened = SearchIndex.open(index)
    assert len(opened) == 8
    assert opened.picture(0) == index.parent / "photos" / "black.png"


@pytest.mark.parametrize("part", ["vectors-00001.faiss", "rows-00001.tsv"])
def test_an_altered_file_is_not_read(index: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((index / part).read_bytes())
    content[-1] ^= 1
    (index / part).write_bytes(content)
    monkeypatch.setattr(faiss(), "read_index", lambda *a: pytest.fail("read before it was verified"))
    with pytest.raises(ValueError, match=r"is altered or truncated, its hash differs from index\.json"):
        SearchIndex.open(index)
    (index / part).unlink()
    with pytest.raises(ValueError, match="is missing"):
        SearchIndex.open(index)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "harm"))


def test_nothing_is_unpickled(index: Path, tmp_path: Path) -> None:
    content = pickle.dumps(Harm(tmp_path / "harm"))
    pickle.loads(content)
    assert (tmp_path / "harm").exists()  # the control: it would do harm
    (tmp_path / "harm").unlink()
    for part in ("vectors", "rows"):
        put(index, part, content)
        with pytest.raises(ValueError, match="replaced"):
            SearchIndex.open(index)
    (index / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        SearchIndex.open(index)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("cut", "more"), [(0, 0), (3, 60), (4, 0), (4, 60), (40, 60), (-20, 0)])
def test_a_damaged_faiss_file_is_a_sentence(index: Path, cut: int, more: int) -> None:
    put(index, "vectors", (index / "vectors-00001.faiss").read_bytes()[:cut] + b"\xff" * more)
    with pytest.raises(ValueError, match=r"replaced: (is not|holds)"):
        SearchIndex.open(index)


def test_a_different_kind_of_faiss_file_is_refused(index: Path, tmp_path: Path) -> None:
    other = faiss().IndexFlatL2(5)
    other.add(np.zeros((8, 5), dtype=np.float32))
    faiss().write_index(other, str(tmp_path / "l2"))
    put(index, "vectors", (tmp_path / "l2").read_bytes())
    with pytest.raises(ValueError, match="not a faiss index of the kind 'exact'"):
        SearchIndex.open(index)
    fewer = faiss().IndexFlatIP(5)
    fewer.add(np.zeros((7, 5), dtype=np.float32))
    faiss().write_index(fewer, str(tmp_path / "ip"))
    put(index, "vectors", (tmp_path / "ip").read_bytes())
    with pytest.raises(ValueError, match="holds 7 vectors of 5 dimensions"):
        SearchIndex.open(index)


def test_lists_in_another_file_are_refused(index: Path, tmp_path: Path) -> None:
    quantizer = faiss().IndexFlatIP(5)
    ivf = faiss().IndexIVFFlat(quantizer, 5, 1, faiss().METRIC_INNER_PRODUCT)
    rows = np.eye(8, 5, dtype=np.float32)
    ivf.train(rows)
    lists = faiss().OnDiskInvertedLists(1, ivf.code_size, str(tmp_path / "elsewhere"))
    ivf.replace_invlists(lists)
    ivf.add(rows)
    faiss().write_index(ivf, str(tmp_path / "ivf"))
    put(index, "vectors", (tmp_path / "ivf").read_bytes())
    edit(index, lambda manifest: manifest.update(kind="ivf", effort=1))
    with pytest.raises(ValueError, match="build the index again"):
        SearchIndex.open(index)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="other"), "is not the manifest of a search index"),
        (lambda m: m.update(version=2), "has version 2, but this program reads version 1"),
        (lambda m: m.pop("rows"), "rows is missing; the index is damaged; build it again"),
        (lambda m: m.update(kind="fast"), "kind has an impossible value"),
        (lambda m: m.update(kind=["exact"]), "kind has the type list, not str"),
        (lambda m: m.update(removed=[9]), "is damaged"),
        (lambda m: m.update(removed=["0"]), "is damaged"),
        (lambda m: m.update(effort="1"), "is damaged"),
        (lambda m: m.update(effort=-1), "is damaged"),
        (lambda m: m.update(effort=10**30), "is damaged"),
        (lambda m: m["model"].update(load={"path": 3}), "is damaged"),
        (lambda m: m.update(dim=-5), "is damaged"),
        (lambda m: m.update(model={}), "is damaged"),
        (lambda m: m.update(roots=[1]), "is damaged"),
        (lambda m: m["files"]["rows"].update(file="../photos/red.png"), "is damaged"),
        (lambda m: m["files"].pop("vectors"), "is damaged"),
        (lambda m: m.update(rows=9), "has 8 lines for 9 rows"),
    ],
)
def test_a_damaged_manifest_is_a_sentence(index: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    edit(index, change)
    with pytest.raises(ValueError, match=words):
        SearchIndex.open(index)


def test_nested_json_is_a_sentence(index: Path) -> None:
    (index / "index.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"cannot be read|is not the manifest"):
        SearchIndex.open(index)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_picture_does_not_leave_its_folder(index: Path, path: str) -> None:
    lines = (index / "rows-00001.tsv").read_text(encoding="utf-8").splitlines()
    put(index, "rows", "".join(f"{line}\n" for line in [f"x\t0\t{path}", *lines[1:]]).encode())
    with pytest.raises(ValueError, match="leaves the folder"):
        SearchIndex.open(index).picture(0)


@pytest.mark.parametrize("line", ["x\t5\tred.png", "x\t-1\tred.png", "x\tred.png", f"x\t{'9' * 5000}\tx"])
def test_a_damaged_row_is_a_sentence(index: Path, line: str) -> None:
    lines = (index / "rows-00001.tsv").read_text(encoding="utf-8").splitlines()
    put(index, "rows", "".join(f"{text}\n" for text in [line, *lines[1:]]).encode())
    with pytest.raises(ValueError, match=r"is damaged|is in folder 5"):
        SearchIndex.open(index).picture(0)


@pytest.mark.parametrize(
    "read",
    [
        read_texts,
        lambda path: read_pairs(path, "x"),
        lambda path: read_labelled(path, None),  # type: ignore[arg-type]
    ],
)
def test_lines_that_only_old_macs_end_are_not_one_line(read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"de\tHund\rde\tKatze\r")
    with pytest.raises(UserError, match=r"lines, line 1: has a carriage return inside"):
        read(tmp_path / "lines")


def test_a_query_has_no_language_before_it(tmp_path: Path) -> None:
    (tmp_path / "bank.tsv").write_text("de\tHund\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bank\.tsv, line 1: has a tab; write one query per line, and nothing else$"):
        read_texts(tmp_path / "bank.tsv")


def test_faiss_opens_only_names_in_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UserError, match="its path is not UTF-8, which faiss needs"), locked(folder):
        pytest.fail("made")
    assert not folder.exists()
    with pytest.raises(UserError, match="its path is not UTF-8, which faiss needs"):
        read_index_manifest(folder)
