"""The configuration of an OCI image that is made (``config.md`` of the specification): what its program is, and where
it runs.

It begins as the one that the image has or a file gives, of which unknown fields are kept; options change it. Each field
that we know is checked: tools in Go refuse a document with one value of a wrong type.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from mystfuse.archives.oci_descriptor import to_json
from mystfuse.errors import FormatError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For programs of images that set none."""
ELF_HEADER = 20
"""Bytes at the beginning of a program that say for which machine it is."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = 253402300799
"""The last second of the year 9999, the last one of RFC 3339."""

# Go's names (GOARCH), by e_machine of <elf.h>, whether it has 64 bits, and its byte order.
_MACHINES = {
    (62, True, "<"): "amd64",
    (3, False, "<"): "386",
    (183, True, "<"): "arm64",
    (40, False, "<"): "arm",
    (243, True, "<"): "riscv64",
    (21, True, "<"): "ppc64le",
    (22, True, ">"): "s390x",
    (258, True, "<"): "loong64",
    (8, True, "<"): "mips64le",
}
_UNAMES = {
    "x86_64": "amd64", "i386": "386", "i686": "386", "aarch64": "arm64", "armv6l": "arm", "armv7l": "arm",
    "mips64": "mips64le", "loongarch64": "loong64",
}  # fmt: skip
_DOCUMENT_FIELDS = frozenset({"architecture", "os", "config", "rootfs"})
"""The fields by which a whole document differs from its part ``config`` alone."""


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """What options say about the program; None leaves it as it is."""

    entrypoint: Sequence[str] | None = None
    """A new one takes the arguments of the old one away."""
    cmd: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set besides the ones that are there."""
    directory: str | None = None
    user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str | None = None


class ImageConfig:
    """The configuration of an image, but for its layer.

    Args:
        document: a configuration, or its part ``config`` alone; empty if there is none.
        name: of its file, for messages.

    Raises:
        FormatError: a field has a value of a wrong type.
    """

    def __init__(self, document: Mapping[str, Any], name: str) -> None:
        is_whole = bool(_DOCUMENT_FIELDS & document.keys())
        program = document.get("config") if is_whole else document
        program = {} if program is None else program
        if not isinstance(program, dict):
            raise FormatError(f"{name}: config must be an object")
        self._program: dict[str, Any] = {key: value for key, value in program.items() if value is not None}
        for key, is_right in _FIELDS.items():
            if key in self._program and not is_right(self._program[key]):
                raise FormatError(f"{name}: {key} has a value of a wrong type")
        self._platform: dict[str, Any] = {}
        for key in ("architecture", "variant", "os", "os.version", "author"):
            value = document.get(key) if is_whole else None
            if value is not None and not isinstance(value, str):
                raise FormatError(f"{name}: {key} must be a string")
            if value:
                self._platform[key] = value

    @property
    def architecture(self) -> str | None:
        """The machine that it names; None if it names none."""
        return self._platform.get("architecture")

    @property
    def program(self) -> str | None:
        """The first word of the command."""
        words = [*self._program.get("Entrypoint", ()), *self._program.get("Cmd", ())]
        return words[0] if words else None

    def change(self, changes: ConfigChanges) -> None:
        """Apply what options say."""
        if changes.entrypoint is not None:
            self._set("Entrypoint", list(changes.entrypoint))
            self._set("Cmd", [])
        if changes.cmd is not None:
            self._set("Cmd", list(changes.cmd))
        variables = dict(text.partition("=")[::2] for text in self._program.get("Env", ()))
        variables.update(changes.environment)
        variables.setdefault("PATH", DEFAULT_PATH)
        self._set("Env", [f"{name}={value}" for name, value in variables.items()])
        if changes.directory is not None:
            self._set("WorkingDir", changes.directory)
        if changes.user is not None:
            self._set("User", changes.user)
        self._set("Labels", {**self._program.get("Labels", {}), **changes.labels})
        if changes.architecture is not None and changes.architecture != self.architecture:
            self._platform.pop("variant", None)
            self._platform["architecture"] = changes.architecture

    def _set(self, key: str, value: Any) -> None:
        if value:
            self._program[key] = value
        else:
            self._program.pop(key, None)

    def to_bytes(self, architecture: str, created: int, diff_id: str) -> bytes:
        """The document of an image with one layer.

        Args:
            architecture: if the configuration names none.
            created: seconds since the epoch.
            diff_id: the digest of the layer's archive.
        """
        time = rfc3339(created)
        return to_json(
            {
                "architecture": architecture,
                "os": "linux",
                **self._platform,
                "created": time,
                "config": self._program,
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
                "history": [{"created": time, "created_by": "mystfuse oci"}],
            }
        )


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(member, dict) for member in value.values())


_FIELDS = {
    "Entrypoint": _is_words, "Cmd": _is_words, "Env": _is_words, "Labels": _is_texts, "ExposedPorts": _is_set,
    "Volumes": _is_set, "User": _is_text, "WorkingDir": _is_text, "StopSignal": _is_text,
}  # fmt: skip


def rfc3339(seconds: int) -> str:
    """A time as the specification wants it; one that it cannot express is the nearest that it can."""
    return (_EPOCH + timedelta(seconds=min(max(seconds, 0), _LAST))).strftime("%Y-%m-%dT%H:%M:%SZ")


def elf_architecture(header: bytes) -> str | None:
    """The machine that a program is for, by its first bytes; None if that is not known."""
    if len(header) < ELF_HEADER or not header.startswith(b"\x7fELF"):
        return None
    order = {1: "<", 2: ">"}.get(header[5], "<")
    (machine,) = struct.unpack_from(f"{order}H", header, 18)
    return _MACHINES.get((machine, header[4] == 2, order))


def own_architecture() -> str:
    """The machine that we run on."""
    machine = os.uname().machine
    return _UNAMES.get(machine, machine)
