"""Search with a model that reads each language in its own way: the language is named, or guessed by the script."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.search import main as search
from mclip_fairseq.search.languages import encode_texts, guess_language
from mclip_fairseq.storage.errors import UserError
from tests.mla_data import untrained_directory


@pytest.fixture(scope="module")
def directory(photos: Path, mla_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_directory(tmp_path_factory.mktemp("directory") / "mla", photos, mla_corpus)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ein Hund", "en"),
        ("собака", "ru"),
        ("犬", "zh"),
        ("浜辺の犬", "ja"),
        ("개", "ko"),
        ("a 犬 dog", "zh"),
        ("42", "en"),
    ],
)
def test_the_script_names_the_language(text: str, language: str) -> None:
    assert guess_language(text, ["en", "de", "zh", "ja", "ko", "ru"]) == language


def test_a_script_without_a_language_is_refused() -> None:
    assert guess_language("犬", ["en", "ja"]) == "ja"
    with pytest.raises(UserError, match="no language of this script; it has en, de"):
        guess_language("собака", ["en", "de"])


def test_texts_are_encoded_in_their_languages(directory: Path) -> None:
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    texts = ["ein Hund", "a dog", "un chien", "ein Haus"]
    together = encode_texts(model, texts, ["de", "", "fr", "de"])
    for row, language in enumerate(["de", "en", "fr", "de"]):
        torch.testing.assert_close(together[row], model.for_language(language).encode_text(texts[row])[0])


def test_an_index_is_built_and_asked_in_a_language(
    directory: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    index = str(tmp_path / "index")
    common = ["--device", "cpu"]
    assert search(["build", str(photos / "images"), "--model", str(directory), "--output", index, *common]) == 0
    capsys.readouterr()

    def ask(*words: str) -> list[dict[str, Any]]:
        assert search(["query", index, *words, "--json", "-k", "5", *common]) == 0
        answers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["answers"]
        return answers

    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    images = model.encode_image([photos / "images" / f"img{number}.png" for number in range(40)])
    for language in ("de", "fr", "en"):
        scores = (model.for_language(language).encode_text(["ein Hund"]) @ images.T)[0].sort(descending=True).values[:5]
        given = [hit["score"] for hit in ask("ein Hund", "--language", language)[0]["results"]]
        assert given == pytest.approx(scores.tolist(), abs=1e-5)
    by_language = ask("--languages", "de=ein Hund", "fr=un chien")
    assert [answer["language"] for answer in by_language] == ["de", "fr"]
    assert search(["query", index, "ein Hund", "--language", "ja", *common]) == 2
    assert "does not have the language 'ja'" in capsys.readouterr().err


def test_the_page_asks_in_a_language(directory: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    testclient = pytest.importorskip("starlette.testclient")
    from mclip_fairseq.search.index import SearchIndex
    from mclip_fairseq.search.server import make_app

    index = tmp_path / "index"
    build = ["build", str(photos / "images"), "--model", str(directory), "--output", str(index), "--device", "cpu"]
    assert search(build) == 0
    model = MultilingualCLIP.from_pretrained(directory, device="cpu")
    with testclient.TestClient(make_app(SearchIndex.open(index), model), base_url="http://localhost") as page:
        assert page.get("/about").json()["choose_language"] is True
        answers = {
            language: page.post("/search", json={"query": "ein Hund", "language": language}).json()["results"]
            for language in ("de", "fr", None)
        }
        assert answers["de"] != answers["fr"]
        assert answers[None] == page.post("/search", json={"query": "ein Hund", "language": "en"}).json()["results"]
        refused = page.post("/search", json={"query": "ein Hund", "language": "ja"})
        assert (refused.status_code, "does not have the language" in refused.json()["error"]) == (400, True)
        assert page.post("/search", json={"query": "собака"}).status_code == 400
