"""The examples of docs/tools.md, each with the tool itself, and OpenAI's client against `mclip-search serve`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_fairseq import MultilingualCLIP
from tests.colours import ColourModel, draw_colours

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"
NEEDS = {  # heading -> packages
    "sentence-transformers": ("sentence_transformers",),
    "mteb": ("mteb",),
    "open_clip and CLIP_benchmark": (),
    "LangChain": ("langchain_core",),
    "Haystack": ("haystack", "haystack_integrations.components.embedders.sentence_transformers"),
}


def examples(root: Path) -> dict[str, str]:
    page = (root / "docs" / "tools.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    blocks = {
        title: re.search(r"```python\n(.*?)```", text, re.DOTALL)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {title: match[1] for title, match in blocks.items() if match}


def run(code: str, folder: Path) -> dict[str, Any]:
    """The names that an example leaves behind."""
    draw_colours(folder / "photos")
    code = code.replace('"mclip-base"', repr(str(LEGACY))).replace('"photos', f'"{folder}/photos')
    names: dict[str, Any] = {}
    exec(compile(code, "docs/tools.md", "exec"), names)
    return names


def test_every_example_is_tested(repository_root: Path) -> None:
    assert set(examples(repository_root)) == set(NEEDS)


@pytest.mark.parametrize("title", NEEDS)
def test_example(title: str, repository_root: Path, tmp_path: Path) -> None:
    for package in NEEDS[title]:
        pytest.importorskip(package, reason=f"{package} is not installed (extras mteb, tools)")
    names = run(examples(repository_root)[title], tmp_path)
    model = MultilingualCLIP.from_pretrained(LEGACY, device="cpu")
    photos = sorted((tmp_path / "photos").glob("*.png"))
    if title in ("LangChain", "Haystack"):
        cosines = (model.encode_text("ein rotes Bild") @ model.encode_image(photos).T)[0]
        nearest = [str(photos[number]) for number in cosines.topk(2).indices.tolist()]
        found = [getattr(hit, "page_content", None) or hit.meta["file_path"] for hit in names["found"]]
        assert found == nearest
    elif title == "sentence-transformers":
        np.testing.assert_allclose(names["texts"], model.encode_text(["ein Hund am Strand", "a red car"]), atol=1e-5)
        np.testing.assert_allclose(names["images"], model.encode_image([tmp_path / "photos" / "red.png"]), atol=1e-5)
    elif title == "mteb":
        assert names["model"].mteb_model_meta.embed_dim == model.dim
    else:
        expected = model.encode_text(["ein rotes Bild", "a blue picture"])
        np.testing.assert_allclose(names["text"].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(names["image"].numpy(), model.encode_image(tmp_path / "photos/red.png"), atol=1e-5)


def test_openai_client(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed (pip install mclip_fairseq[tools])")
    pytest.importorskip("faiss", reason="faiss is not installed (pip install mclip_fairseq[search])")
    index_of = importlib.import_module("mclip_fairseq.search.index").SearchIndex
    page, model = importlib.import_module("tests.search_page"), ColourModel()
    page.make_index(tmp_path / "index", draw_colours(tmp_path / "photos"), model)
    with page.running(index_of.open(tmp_path / "index"), model) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        answer = client.embeddings.create(model="colours", input=["red", "blau"])
        assert [entry.id for entry in client.models.list()] == ["colours"]
    vectors = np.array([row.embedding for row in answer.data], dtype=np.float32)
    np.testing.assert_allclose(vectors, model.encode_text(["red", "blau"]), atol=1e-6)
