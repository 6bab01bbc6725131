"""What the server's questions take and which statuses they answer with, in the words of OpenAPI.

Nobody is served this: it is there so that a test can ask everything that the description allows.
"""

from __future__ import annotations

from typing import Any


def _answers(*refusals: int, kind: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """The statuses of a question: 200 with this kind of content, and the refusals, each with a sentence.

    403 is for requests of other sites, 400 and 422 for what is not understood.
    """
    sentence = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    found: dict[int | str, dict[str, Any]] = {200: {"description": "the answer", "content": {kind: {}}}}
    for status in (400, 403, *refusals):
        found[status] = {"description": "refused", "content": {"application/json": {"schema": sentence}}}
    return found


def _query(name: str, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": {"type": "string"}}


PAGE: dict[str, Any] = {"responses": _answers(kind="text/html")}
EXAMPLES: dict[str, Any] = {"responses": _answers()}
EXAMPLE: dict[str, Any] = {"responses": _answers(404, 405, 422)}
IMAGE: dict[str, Any] = {
    "responses": _answers(408, 413, 415, 422, 503),
    "openapi_extra": {
        "parameters": [_query("name", required=False)],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
}
SEEDS: dict[str, Any] = {"responses": _answers(404, 405)}
SEED: dict[str, Any] = {"responses": _answers(404, 405, 422)}
ROW: dict[str, Any] = {
    "responses": _answers(404),
    "openapi_extra": {
        "parameters": [
            _query("network", required=False),
            _query("site"),
            _query("t", required=False),
            _query("y"),
            _query("x"),
        ]
    },
}
EXPORT: dict[str, Any] = {"responses": _answers(404, kind="text/html")}
