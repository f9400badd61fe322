"""Files that a command line names for something that they are not: one line says what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mystfuse.errors import UsageError
from mystfuse.system.configured_file import names_descriptor

if TYPE_CHECKING:
    from mystfuse.formats.others.kind import Kind

PATIENCE = 5.0
"""Seconds that storage may take to say what a file is, when it is only for a message."""
_COULD_BE_MEANT = frozenset({"pem", "ssh-key", "text", "unknown", "random", "script", "json", "xml"})
"""Kinds of files of which the reader of keys, hashes and packages says more than we can."""


@contextmanager
def naming_wrong_file(path: str, option: str, wanted: str) -> Iterator[None]:
    """In place of a UsageError of the block about the file at ``path``, raise one that says what that is, if it is
    quite another kind of file.

    Args:
        option: the option that named it, for the message.
        wanted: what it must be, with an article.
    """
    try:
        yield
    except UsageError as error:
        kind = other_kind(path)
        if kind is None:
            raise
        raise UsageError(f"{option} {path}: {kind.title}, not {wanted}") from error


def other_kind(path: str, could_be: frozenset[str] = _COULD_BE_MEANT) -> Kind | None:
    """What the file at ``path`` is, if it can be said and is none of the kinds ``could_be``; None else."""
    # Only here: when something is wrong already.
    from mystfuse.image.identify import identify_path

    # What came out of a pipe has been read.
    kind = None if names_descriptor(path) else identify_path(path, PATIENCE)
    return kind if kind is not None and kind.name not in could_be else None
