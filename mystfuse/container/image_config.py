"""The configuration that an image has for its program, read where the image is mounted as the program's root."""

from __future__ import annotations

import os
import stat

from mystfuse.archives.oci_media import CONFIG_IN_IMAGE
from mystfuse.container.root_directory import Root
from mystfuse.errors import FormatError, UsageError
from mystfuse.formats.oci_config import MAX_CONFIG, ProgramConfig, User, find_user

CONFIG_PATH = f"/{CONFIG_IN_IMAGE.decode()}"
_HELP = "see mystfuse exec --help"


def read_config(root: Root) -> ProgramConfig:
    """The configuration.

    Raises:
        UsageError: the image has none, or it names no program.
        FormatError: it is malformed.
    """
    data = _read(root, CONFIG_PATH)
    if data is None:
        raise UsageError(f"exec: Missing argument 'PROGRAM': {CONFIG_PATH} in the image would name one; {_HELP}")
    try:
        config = ProgramConfig.parse(data)
    except FormatError as error:
        raise error.at(CONFIG_PATH) from None
    if not config.command:
        raise UsageError(f"exec: Missing argument 'PROGRAM': {CONFIG_PATH} has neither Entrypoint nor Cmd; {_HELP}")
    return config


def find_image_user(root: Root, text: str) -> User:
    """The user that a configuration names, by the image's own files; raises FormatError if it does not exist."""
    try:
        return find_user(text, _read(root, "/etc/passwd") or b"", _read(root, "/etc/group") or b"")
    except FormatError as error:
        raise error.at(CONFIG_PATH) from None


def _read(root: Root, path: str) -> bytes | None:
    """All of a regular file; None if there is none."""
    try:
        descriptor = root.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as file:
        data = file.read(MAX_CONFIG + 1)
    if len(data) > MAX_CONFIG:
        raise FormatError(f"{path}: more than {MAX_CONFIG} bytes")
    return data
