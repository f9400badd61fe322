"""JSON of others, which may be hostile: an object, or an error that names the file."""

from __future__ import annotations

import json
import math
from typing import Any

from mystfuse.errors import FormatError


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The object that ``data`` is.

    Args:
        name: of the file, for messages.

    Raises:
        FormatError: it is not JSON (RFC 8259), nested too deeply, or no object.
    """
    try:
        document = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise FormatError(f"{name}: nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{name}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{name}: must be a JSON object")
    return document


def _finite(text: str) -> float:
    """A number that can be written again."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
