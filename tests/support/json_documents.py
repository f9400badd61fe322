"""The JSON documents of the commands, and their schemas in ``docs/schemas``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"


def check_document(name: str, document: Any) -> None:
    """Assert that a document is what ``docs/schemas/NAME.json`` says, and has no field that the schema leaves out.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(_closed(schema)).validate(document)


def _closed(schema: Any) -> Any:
    """The schema without leave for fields that it does not name: for readers there is, for us there is not."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") in ("object", ["object", "null"]):
        closed.setdefault("additionalProperties", False)
    return closed
