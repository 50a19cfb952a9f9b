"""Bodies and responses of the server, as its OpenAPI document describes them."""

from typing import Any

_ROW = {
    "type": "object",
    "required": ["depth", "ms", "in_time"],
    "properties": {
        "file": {"type": "string", "description": "the file's name"},
        "class": {"type": "string"},
        "probability": {"type": "number"},
        "number": {"type": "number", "description": "of a network that predicts numbers"},
        "objects": {
            "type": "array",
            "description": "of a detector: boxes are x1, y1, x2, y2 in pixels of the upright image",
            "items": {
                "type": "object",
                "properties": {
                    "class": {"type": "string"},
                    "probability": {"type": "number"},
                    "box": {"type": "array", "items": {"type": "number"}},
                },
            },
        },
        "depth": {"type": "string", "description": "the depth that answered"},
        "ms": {"type": "number", "description": "milliseconds from arrival to answer"},
        "in_time": {"type": "boolean", "description": "false if the promise was broken"},
        "note": {"type": "string", "description": "what was left out, such as the end of a long text"},
        "top": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"class": {"type": "string"}, "probability": {"type": "number"}},
            },
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": _ROW}},
}
_ERROR = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "one line"}},
}
_WHY = {
    400: "an unknown depth, a wrong parameter, or an input that cannot be read",
    408: "the request arrived too slowly",
    413: "the request is too large",
    415: "the body has another type",
    429: "the server is busy; Retry-After says when to try again",
}
#: Responses of a prediction, by status.
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Predictions, one for each input",
        "content": {"application/json": {"schema": _ANSWER}},
    },
    **{
        status: {"description": why, "content": {"application/json": {"schema": _ERROR}}}
        for status, why in _WHY.items()
    },
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
        },
    }
}
_TEXT = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
    ]
}
_JSON = {
    "schema": {
        "oneOf": [
            {
                "type": "object", "required": ["text"], "properties": {"text": _TEXT},
                "additionalProperties": False,
            },
            {
                "type": "object", "required": ["texts"], "additionalProperties": False,
                "properties": {"texts": {"type": "array", "items": _TEXT, "minItems": 1}},
            },
        ]
    }
}  # fmt: skip
#: Bodies of a request, by what the network takes.
BODIES: dict[str, dict[str, Any]] = {
    "files": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _FORM, "image/png": _BYTES, "image/jpeg": _BYTES,
                "application/octet-stream": _BYTES,
            },
        }
    },
    "texts": {"requestBody": {"required": True, "content": {"application/json": _JSON}}},
}  # fmt: skip
