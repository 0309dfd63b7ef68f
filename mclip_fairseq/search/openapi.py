"""The OpenAPI description of `/v1/embeddings`, and the limits that it states."""

from __future__ import annotations

from typing import Any

import mclip_fairseq

PREFIX = "/v1"
MAX_INPUTS = 256
MAX_IMAGES = 16
MAX_TEXT = 8192  # characters; the model cuts texts to its own limit of tokens


def description(model: str, dim: int, with_key: bool) -> dict[str, Any]:
    """The description of a server.

    Args:
        model: its name.
        dim: width of its vectors.
        with_key: whether requests need a key.
    """
    operation: dict[str, Any] = {
        "operationId": "createEmbedding",
        "summary": "L2-normalised vectors of texts and images in one space",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(model, dim)}}},
        "responses": responses(dim),
    }
    components: dict[str, Any] = {}
    if with_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        operation["security"] = [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Embeddings of {model}", "version": mclip_fairseq.__version__},
        "paths": {f"{PREFIX}/embeddings": {"post": operation}},
        "components": components,
    }


def request_schema(model: str, dim: int) -> dict[str, Any]:
    """JSON Schema of a request."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
    image = {"type": "string", "description": "an image file in base64, bare or as a data URL; no address is fetched"}
    one = {
        "oneOf": [text, *(object_schema({name: each}, [name]) for name, each in {"text": text, "image": image}.items())]
    }
    many = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_INPUTS,
        "items": one,
        "description": f"at most {MAX_IMAGES} of them images",
    }
    return {
        "type": "object",
        "required": ["input"],
        "properties": {
            "input": {"oneOf": [*one["oneOf"], many]},
            "model": {"type": "string", "enum": [model]},
            "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
            "dimensions": {"type": "integer", "minimum": 1, "maximum": dim},
            "language": {"type": "string", "description": "of the texts, for a model that reads each in its own way"},
        },
    }


def object_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """JSON Schema of an object with these properties only."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def responses(dim: int) -> dict[str, Any]:
    """The answers: vectors, or an error with one sentence."""
    numbers = {"type": "array", "items": {"type": "number"}, "maxItems": dim}
    vector = {"oneOf": [numbers, {"type": "string", "description": "little-endian float32 in base64"}]}
    row = object_schema(
        {"object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": vector},
        ["object", "index", "embedding"],
    )
    count = {"type": "integer", "minimum": 0}
    usage = object_schema({"prompt_tokens": count, "total_tokens": count}, ["prompt_tokens", "total_tokens"])
    answer = object_schema(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": row},
            "model": {"type": "string"},
            "usage": usage,
        },
        ["object", "data", "model", "usage"],
    )
    error = {"error": object_schema({"message": {"type": "string"}, "type": {"type": "string"}}, ["message", "type"])}
    reasons = {
        "400": "the request cannot be read",
        "401": "the key is missing or wrong",
        "404": "another model",
        "413": "the request is too large",
        "415": "not JSON",
        "503": "too many requests; try again after Retry-After seconds",
    }
    failed = {"application/json": {"schema": object_schema(error, ["error"])}}
    return {
        "200": {
            "description": "vectors, in the order of the inputs",
            "content": {"application/json": {"schema": answer}},
        },
        **{status: {"description": reason, "content": failed} for status, reason in reasons.items()},
    }
