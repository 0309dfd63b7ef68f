"""`POST /v1/embeddings` of `mclip-search serve`: OpenAI's form, images in base64, limits, the key."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.search.embeddings import Access, access_of
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.openapi import MAX_IMAGES, MAX_INPUTS, MAX_TEXT, description
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_page import SlowModel, ask, make_index, running

KEY = "a-secret-key"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, ColourModel]]:
    """Ports of a server without a key and of one with a key, and their model."""
    folder, model = tmp_path_factory.mktemp("served"), SlowModel()
    make_index(folder / "index", draw_colours(folder / "photos"), model)
    index = SearchIndex.open(folder / "index")
    with running(index, model) as port, running(index, model, access=Access(True, KEY)) as locked:
        yield port, locked, model


def post(port: int, request: Any, **headers: str) -> tuple[int, Any]:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    status, _, content = ask(port, "POST", "/v1/embeddings", body, {"Content-Type": "application/json"} | headers)
    return status, json.loads(content)


def picture(colour: str, form: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20), COLOURS[colour]).save(stream, form)
    return base64.b64encode(stream.getvalue()).decode()


def vectors_of(answer: Any) -> np.ndarray[Any, Any]:
    assert [row["index"] for row in answer["data"]] == list(range(len(answer["data"])))
    return np.array([row["embedding"] for row in answer["data"]], dtype=np.float32)


def test_texts_and_images_have_the_model_s_vectors(pages: Any) -> None:
    port, _, model = pages
    status, answer = post(port, {"input": ["red", {"text": "blau"}, {"image": picture("red")}], "model": "colours"})
    assert (status, answer["object"], answer["model"]) == (200, "list", "colours")
    pixels = [Image.new("RGB", (30, 20), COLOURS["red"])]
    expected = np.concatenate([model.encode_text(["red", "blau"]), model.encode_image(pixels)])
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-6)
    one = post(port, {"input": "red"})[1]
    np.testing.assert_array_equal(vectors_of(one), vectors_of(answer)[:1])
    url = post(port, {"input": {"image": f"data:image/jpeg;base64,{picture('red', 'JPEG')}"}})[1]
    np.testing.assert_allclose(vectors_of(url), expected[2:], atol=0.02)


def test_base64_and_fewer_dimensions(pages: Any) -> None:
    port, _, model = pages
    row = post(port, {"input": "red", "encoding_format": "base64"})[1]["data"][0]["embedding"]
    full = np.frombuffer(base64.b64decode(row), dtype="<f4")
    np.testing.assert_allclose(full, model.encode_text(["red"])[0].numpy(), atol=1e-7)
    short = vectors_of(post(port, {"input": "red", "dimensions": 3})[1])[0]
    np.testing.assert_allclose(short, full[:3] / np.linalg.norm(full[:3]), atol=1e-6)


def test_large_requests_keep_their_order_and_are_cut_into_small_batches(pages: Any) -> None:
    port, _, model = pages
    names = [list(COLOURS)[number % len(COLOURS)] for number in range(MAX_INPUTS)]
    model.batches.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(port, {"input": names}), range(4)))
    assert max(model.batches) <= 32
    for status, answer in answers:
        assert status == 200
        np.testing.assert_allclose(vectors_of(answer), model.encode_text(names).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("request_body", "status", "reason"),
    [
        (b"{", 400, "not JSON"),
        ({"model": "colours"}, 400, "input is missing"),
        ({"input": []}, 400, "0 inputs"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, 400, "inputs; send 1 to"),
        ({"input": [[1, 2, 3]]}, 400, "not a text"),
        ({"input": " "}, 400, "not only spaces"),
        ({"input": "a" * (MAX_TEXT + 1)}, 400, f"send 1 to {MAX_TEXT}"),
        ({"input": "a\0"}, 400, "not valid Unicode"),
        ({"input": "\ud800"}, 400, "not valid Unicode"),
        ({"input": "red", "model": "gpt"}, 404, "this is colours"),
        ({"input": "red", "dimensions": 6}, 400, "from 1 to 5"),
        ({"input": "red", "encoding_format": "hex"}, 400, "float or base64"),
        ({"input": {"image": "http://example.org/a.png"}}, 400, "is an address"),
        ({"input": {"image": "http://example.org/a,b.png"}}, 400, "not an image in base64"),
        ({"input": {"image": "!!!"}}, 400, "not an image in base64"),
        ({"input": {"image": base64.b64encode(b"no image").decode()}}, 400, "the image"),
        ({"input": [{"image": "AAAA"}] * (MAX_IMAGES + 1)}, 400, "images; send fewer"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(request_body: Any, status: int, reason: str, pages: Any) -> None:
    found, answer = post(pages[0], request_body)
    assert found == status
    assert reason in answer["error"]["message"]


def test_other_kinds_large_bodies_and_bugs(pages: Any) -> None:
    port = pages[0]
    assert post(port, {"input": "red"}, **{"Content-Type": "text/plain"})[0] == 415
    assert post(port, {"input": "red"}, **{"Content-Length": str(1 << 30)})[0] == 413
    status, answer = post(port, {"input": "fail"})
    assert (status, answer["error"]["message"]) == (500, "the search failed")


def test_a_key_is_asked_for(pages: Any) -> None:
    port, locked, _ = pages
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}x"}, {"Authorization": "Ä"}):
        assert post(locked, {"input": "red"}, **headers)[0] == 401, headers
    right = {"Authorization": f"Bearer {KEY}"}
    assert post(locked, {"input": "red"}, **right)[0] == 200
    assert ask(locked, "GET", "/v1/models")[0] == 401
    assert json.loads(ask(port, "GET", "/v1/models")[2])["data"][0]["id"] == "colours"


def test_others_reach_it_only_with_a_key() -> None:
    assert access_of("127.0.0.1", [], "") == Access(True, "")
    assert access_of("0.0.0.0", [], "") == Access(False, "")
    assert access_of("127.0.0.1", ["photos.example.org"], "").offered is False
    assert access_of("0.0.0.0", [], KEY) == Access(True, KEY)


def test_without_access_there_is_no_endpoint(tmp_path: Path) -> None:
    model = ColourModel()
    index = make_index(tmp_path / "index", draw_colours(tmp_path / "photos", ("red",)), model)
    with running(index, model, access=Access(False)) as port:
        assert post(port, {"input": "red"})[0] == 404


def test_the_description_states_the_limits(pages: Any) -> None:
    port, locked, model = pages
    stated = json.loads(ask(port, "GET", "/v1/openapi.json")[2])
    assert stated == json.loads(json.dumps(description("colours", model.dim, False)))
    operation = stated["paths"]["/v1/embeddings"]["post"]
    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    many = properties["input"]["oneOf"][-1]
    assert (many["maxItems"], properties["dimensions"]["maximum"]) == (MAX_INPUTS, model.dim)
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    found = post(port, {"input": "red"})[1]
    assert found.keys() == set(answer["required"])
    assert found["data"][0].keys() == set(answer["properties"]["data"]["items"]["required"])
    locked_operation = json.loads(ask(locked, "GET", "/v1/openapi.json")[2])["paths"]["/v1/embeddings"]["post"]
    assert locked_operation["security"] == [{"key": []}]
