"""What the server answers, as OpenAPI, written by hand: the routes read their bodies themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modalign.serve.requests import DEFAULT_K, Served
from modalign.serve.settings import LARGEST_K, TEXT_CHARACTERS

Schema = dict[str, Any]

ERRORS = {
    400: "The call is malformed, or asks for what there is not.",
    401: "The token is missing or another.",
    404: "There is no such thing.",
    413: "The body, a file or a text is larger than the server takes.",
    415: "The body is of another type.",
    416: "The range is outside of the file.",
    422: "An upload is broken, of another kind, or asks for too much.",
    500: "The server failed.",
    503: "Too much at once; `Retry-After` says when to try again.",
    504: "The request took longer than it may.",
}


def openapi_schema(served: Served, examples: Mapping[str, str], *, version: str) -> Schema:
    """Return the schema of a server.

    Args:
        served: What there is to ask for.
        examples: The id of an item by the index that has it.
        version: Of modalign.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modalign",
            "version": version,
            "description": f"Search in the space {served.space} by {', '.join(served.reads)}.",
        },
        "paths": {
            "/v1/search": {"post": search_operation(served, examples)},
            "/v1/embeddings": {"post": embeddings_operation(served)},
            "/v1/spaces": {"get": spaces_operation()},
            "/v1/items/{id}": {"get": item_operation(examples)},
            "/v1/media/{index}/{id}": {"get": media_operation(examples)},
            "/v1/thumbnails/{index}/{id}": {"get": thumbnail_operation(examples)},
            "/healthz": {"get": health_operation("Say that the server runs", [])},
            "/readyz": {"get": health_operation("Say whether the server can answer", [503])},
            "/metrics": {"get": metrics_operation()},
        },
        "components": {
            "schemas": {"Error": ERROR, "Item": item_schema(), "Hit": hit_schema(served)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # Needed only where the server was told a token.
        "security": [{}, {"token": []}],
    }


# Operations -------------------------------------------------------------------------------


def search_operation(served: Served, examples: Mapping[str, str]) -> Schema:
    """Describe `/v1/search`."""
    shared = {
        "like": {
            "type": "string",
            "description": "More like an item: INDEX/ID. The item itself is left out.",
            "examples": [f"{name}/{item_id}" for name, item_id in examples.items()],
        },
    }
    as_json = {
        **{name: json_part(name, reads) for name, reads in served.reads.items()},
        **shared,
        "weights": WEIGHTS,
        "k": {"type": "integer", "minimum": 1, "maximum": LARGEST_K, "default": DEFAULT_K},
        "indexes": names("Indexes to search; by default all that a way leads to.", served.indexes),
        "modality": names("Of the answers.", {i.modality for i in served.indexes.values()}),
        "filter": {"type": "object", "description": FILTER},
    }
    as_form = {
        **as_json,
        **{name: form_part(name, reads) for name, reads in served.reads.items()},
        "indexes": {**NAMES, "description": "Names with commas between them."},
        "modality": {**NAMES, "description": "Names with commas between them."},
    }
    parts = (*served.reads, "like")
    sent = [{"required": [name]} for name in parts]
    not_null = [
        {**each, "properties": {name: {"type": "string"}}}
        for name, each in zip(parts, sent, strict=True)
    ]
    return {
        "summary": "Search by words, a picture, a sound, a clip, an item, or several of them",
        "operationId": "search",
        "requestBody": body(
            {
                "application/json": {**object_of(nullable(as_json)), "anyOf": not_null},
                "multipart/form-data": {**object_of(as_form), "anyOf": sent},
            }
        ),
        "responses": responses(SEARCH_ANSWER, 400, 401, 404, 413, 415, 422, 500, 503, 504),
    }


def embeddings_operation(served: Served) -> Schema:
    """Describe `/v1/embeddings`."""
    one = {**WORDS, "maxLength": TEXT_CHARACTERS}
    required = {
        "model": {
            "type": "string",
            "enum": [*served.reads, *(f"{served.space}:{name}" for name in served.reads)],
        },
        "input": {
            "oneOf": [one, {"type": "array", "items": one, "minItems": 1}],
            "description": "Texts; of pictures, sounds and clips data URIs in base64.",
        },
    }
    optional = {
        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "The width of the vectors, as it is."},
        "user": {"type": "string", "description": "Not used."},
    }
    vector = {
        "oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}],
        "description": "Numbers, or base64 of float32, little-endian.",
    }
    answer = object_of(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": object_of(
                    {
                        "object": {"const": "embedding"},
                        "index": {"type": "integer"},
                        "embedding": vector,
                    },
                    required=True,
                ),
            },
            "model": {"type": "string"},
            "usage": {"type": "object"},
        },
        required=True,
    )
    return {
        "summary": "Embed items: vectors as they are stored, in the shape of OpenAI's",
        "operationId": "embeddings",
        "requestBody": body(
            {
                "application/json": {
                    **object_of({**required, **nullable(optional)}),
                    "required": list(required),
                }
            }
        ),
        "responses": responses(answer, 400, 401, 404, 413, 415, 422, 500, 503, 504),
    }


def spaces_operation() -> Schema:
    """Describe `/v1/spaces`."""
    listed = {"type": "array", "items": {"type": "object"}}
    space = object_of(
        {
            "name": {"type": "string"},
            "modalities": listed,
            "indexes": listed,
            "directions": listed,
            "limits": {"type": "object"},
        },
        required=True,
    )
    answer = object_of({"spaces": {"type": "array", "items": space}}, required=True)
    return {
        "summary": "Say what can be asked for: modalities, indexes, directions, limits",
        "operationId": "spaces",
        "responses": responses(answer, 401, 500, 503, 504),
    }


def item_operation(examples: Mapping[str, str]) -> Schema:
    """Describe `/v1/items`."""
    index = {
        "name": "index",
        "in": "query",
        "required": False,
        "description": "May be left out where only one index has the id.",
        "schema": {"type": "string", "examples": list(examples)},
    }
    return {
        "summary": "Say what an item is",
        "operationId": "item",
        "parameters": [id_parameter(examples), index],
        "responses": responses(reference("Item"), 400, 401, 404, 500, 503, 504),
    }


def media_operation(examples: Mapping[str, str]) -> Schema:
    """Describe `/v1/media`."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    types = {"image/*": binary, "audio/*": binary, "video/*": binary}
    answers = responses({}, 401, 404, 500, 503)
    answers["200"] = {"description": "The file.", "content": types}
    answers["206"] = {"description": "A range of it.", "content": {**types, "multipart/*": binary}}
    answers["304"] = {"description": "The client has it already."}
    # Written by the framework, in plain text.
    answers["400"] = {"description": "The Range header is malformed."}
    answers["416"] = {"description": ERRORS[416]}
    return {
        "summary": "Send an item's file, or a range of it",
        "operationId": "media",
        "parameters": item_parameters(examples),
        "responses": answers,
    }


def thumbnail_operation(examples: Mapping[str, str]) -> Schema:
    """Describe `/v1/thumbnails`."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers = responses({}, 401, 404, 500, 503, 504)
    answers["200"] = {"description": "The picture.", "content": {"image/webp": binary}}
    answers["206"] = {
        "description": "A range of it.",
        "content": {"image/webp": binary, "multipart/*": binary},
    }
    answers["304"] = {"description": "The client has it already."}
    answers["400"] = {"description": "The Range header is malformed."}
    answers["416"] = {"description": ERRORS[416]}
    return {
        "summary": "Send an item's small picture, at most 384 pixels a side",
        "operationId": "thumbnail",
        "parameters": item_parameters(examples),
        "responses": answers,
    }


def health_operation(summary: str, failing: list[int]) -> Schema:
    """Describe `/healthz` and `/readyz`."""
    answer = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "problems": {"type": "array"}},
        "required": ["ok"],
    }
    found = {200, *failing}
    content = {"application/json": {"schema": answer}}
    return {
        "summary": summary,
        "operationId": summary.split()[2] + ("_ready" if failing else "_runs"),
        "security": [],
        "responses": {
            str(status): {"description": "Whether it is so.", "content": content}
            for status in sorted(found)
        },
    }


def metrics_operation() -> Schema:
    """Describe `/metrics`."""
    answers = responses({}, 401, 500)
    answers["200"] = {
        "description": "Text for Prometheus.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return {
        "summary": "Send requests, times, queues, batches and items as figures",
        "operationId": "metrics",
        "responses": answers,
    }


# Parts ------------------------------------------------------------------------------------

ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {
                    "enum": [
                        "usage", "data", "overloaded", "unauthorized", "not_found", "too_large",
                        "timeout", "internal",
                    ]
                },
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}  # fmt: skip
WEIGHTS: Schema = {
    "type": "object",
    "description": 'Of each part, as in {"text": 0.7, "image": 0.3}; 1 each by default.',
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
}
FILTER = (
    'All must hold: {"label": "dog"} equal, {"label": ["dog", "cat"]} one of, '
    '{"year": {"gte": 2000, "lt": 2010}} between; gt, gte, lt, lte, ne.'
)
# At least one letter that is no space.
WORDS: Schema = {"type": "string", "pattern": "\\S"}
NAMES: Schema = {"type": "string", "pattern": "^[^,]*[^,\\s][^,]*(,[^,]*[^,\\s][^,]*)*$"}
SEARCH_ANSWER: Schema = {
    "type": "object",
    "properties": {
        "hits": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
        "from": {"type": "array", "items": {"type": "string"}},
        "to": {"type": "array", "items": {"type": "string"}},
        "ranked_by": {"enum": ["similarity", "probability", "rank"]},
        "seconds": {"type": "number"},
    },
    "required": ["hits", "from", "to", "ranked_by", "seconds"],
}


def item_schema() -> Schema:
    """Describe an item."""
    text: Schema = {"type": ["string", "null"]}
    return object_of(
        {
            "index": {"type": "string"},
            "id": {"type": "string"},
            "modality": {"type": "string"},
            "value": {**text, "description": "The text itself; of a file its name."},
            "metadata": {"type": "object"},
            "media": {**text, "description": "Where its file is sent from."},
            "thumbnail": {**text, "description": "Where its small picture is sent from."},
        },
        required=True,
    )


def hit_schema(served: Served) -> Schema:
    """Describe a result."""
    item = item_schema()
    item["properties"] |= {
        "similarity": {"type": "number", "description": "Cosine, -1 to 1."},
        "probability": {
            "type": ["number", "null"],
            "description": "Of being a match; null where it was never calibrated.",
        },
    }
    item["required"] = list(item["properties"])
    return item


def object_of(properties: Mapping[str, Any], *, required: bool = False) -> Schema:
    """Describe an object of some properties and no others."""
    found: Schema = {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }
    return {**found, "required": list(properties)} if required else found


def nullable(properties: Mapping[str, Any]) -> Schema:
    """Describe properties that may be null, which is as good as left out."""
    return {name: {"anyOf": [each, {"type": "null"}]} for name, each in properties.items()}


def json_part(modality: str, reads: str) -> Schema:
    """Describe what is searched by, in a JSON body."""
    if reads == "text":
        return {**WORDS, "maxLength": TEXT_CHARACTERS}
    return {
        "type": "string",
        "pattern": "^data:[^,]*;base64,",
        "description": f"data:TYPE;base64,... of the {modality}",
    }


def form_part(modality: str, reads: str) -> Schema:
    """Describe what is searched by, in a form."""
    if reads == "text":
        return json_part(modality, reads)
    return {"type": "string", "format": "binary", "description": f"The {modality}, as a file."}


def names(description: str, known: Iterable[str]) -> Schema:
    """Describe a list of names."""
    return {
        "description": description,
        "oneOf": [
            {**NAMES, "description": "With commas between them."},
            {"type": "array", "items": WORDS, "minItems": 1},
        ],
        "examples": [sorted(known)],
    }


def body(content: Mapping[str, Schema]) -> Schema:
    """Describe a request's body, which there must be."""
    return {"required": True, "content": {kind: {"schema": each} for kind, each in content.items()}}


def responses(answer: Schema, *errors: int) -> Schema:
    """Describe an answer, and the errors that may come in its place."""
    found: Schema = {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}}
    }
    for status in errors:
        found[str(status)] = {
            "description": ERRORS[status],
            "content": {"application/json": {"schema": reference("Error")}},
        }
    return found


def reference(name: str) -> Schema:
    """Point to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def item_parameters(examples: Mapping[str, str]) -> list[Schema]:
    """Describe what names an item in a path."""
    return [path_parameter("index", "Of the item.", examples), id_parameter(examples)]


def id_parameter(examples: Mapping[str, str]) -> Schema:
    """Describe an id in a path."""
    return path_parameter("id", "Of the item; it may hold slashes.", examples.values())


def path_parameter(name: str, description: str, examples: Iterable[str]) -> Schema:
    """Describe a part of a path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1, "examples": list(examples)},
    }
