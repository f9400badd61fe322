"""The common arguments of ``open_image`` and ``mount``, and their checks."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mystfuse.errors import UsageError

StrPath = str | os.PathLike[str]
HashOrKey = str | bytes | os.PathLike[str]
"""A root hash or public key itself, or the path of a file that holds it."""


def check_arguments(
    trust: str | None, key: bytes | str | None, passphrase: str | bytes | None, **lists: Iterable[HashOrKey]
) -> None:
    """Raise UsageError if ``trust`` is an unknown word, two keys are given, or one of ``lists`` is a single string."""
    if trust not in (None, "self"):
        raise UsageError(f'trust={trust!r}: only "self" and None are possible')
    for name, given in lists.items():
        if isinstance(given, str | bytes | os.PathLike):
            raise UsageError(f"{name} must be a list of them, not a single one")
    if key is not None and passphrase is not None:
        raise UsageError("key and passphrase exclude each other: one of them opens the image")
