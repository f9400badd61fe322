"""The configuration of a package: the settings of Mystikos' ``config.json``, version 0.1, checked one by one.

Source of the names, types and meanings: Mystikos, ``doc/sign-package.md``, ``doc/design/mount-config-design.md`` and
``tools/myst/config.c``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from mystfuse.errors import UsageError

CONFIGURATION_VERSION = "0.1"
MIN_MEMORY_SIZE = 1 << 20
"""Bytes: with less, nothing could be written either."""
MAX_HOSTNAME = 64
"""Bytes (sethostname(2): HOST_NAME_MAX)."""
_MAX_ENTRIES = 1024
_MAX_STRING = 32 << 10
"""Characters."""
_MAX_PATH = 4095
"""Bytes (PATH_MAX, without the NUL)."""


class MountType(Enum):
    """The kind of a mount at a target."""

    EXT2 = "ext2"
    HOSTFS = "hostfs"
    RAMFS = "ramfs"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A mount that the package declares. The command line gives its source."""

    target: str
    type: MountType
    is_read_only: bool = False
    public_key: str | None = None
    """For an image: PEM of the key that must have signed it."""
    root_hash: str | None = None
    """For an image: its required root hash (64 hex digits)."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The program of a package, and its settings. Every string is valid UTF-8 without NUL."""

    application_path: str
    """Absolute, in the image."""
    application_parameters: tuple[str, ...] = ()
    takes_host_parameters: bool = False
    """Arguments come from the command line; ``application_parameters`` do not count then."""
    environment: tuple[tuple[str, str], ...] = ()
    host_environment: tuple[str, ...] = ()
    """Names of host variables that are passed on."""
    directory: str = "/"
    hostname: str | None = None
    memory_size: int | None = None
    """Bytes."""
    mounts: tuple[MountEntry, ...] = ()
    is_debug: bool = False
    """Any image is loaded."""
    product_id: int = 0
    security_version: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Configuration:
        """The configuration that ``settings`` (parsed JSON) make. PublicKey and Roothash are a PEM and hex digits here.

        Raises:
            UsageError: a setting that is unknown, missing, of the wrong type or impossible; the message begins with it.
        """
        known = {"version", "ApplicationPath", *_OPTIONAL, *WITHOUT_MEANING}
        for name in settings:
            if name not in known:
                raise UsageError(f"{name}: no such setting")
        for name in "version", "ApplicationPath":
            if name not in settings:
                raise UsageError(f"{name}: missing")
        if settings["version"] != CONFIGURATION_VERSION:
            raise UsageError(f'version: must be "{CONFIGURATION_VERSION}"')
        if "MemorySize" in settings and "UserMemSize" in settings:
            raise UsageError("UserMemSize: the older name of MemorySize; leave one of them out")
        for name, check in WITHOUT_MEANING.items():
            if name in settings:
                check(name, settings[name])
        given = {
            parameter: check(name, settings[name]) for name, (parameter, check) in _OPTIONAL.items() if name in settings
        }
        return cls(application_path=_path("ApplicationPath", settings["ApplicationPath"]), **given)

    def settings(self) -> dict[str, Any]:
        """The one canonical spelling, with every setting that has a meaning or a default; ``of`` reads it."""
        settings = {
            "version": CONFIGURATION_VERSION,
            "Debug": self.is_debug,
            "ProductID": self.product_id,
            "SecurityVersion": self.security_version,
            "ApplicationPath": self.application_path,
            "ApplicationParameters": list(self.application_parameters),
            "HostApplicationParameters": self.takes_host_parameters,
            "EnvironmentVariables": [f"{name}={value}" for name, value in self.environment],
            "HostEnvironmentVariables": list(self.host_environment),
            "CurrentWorkingDirectory": self.directory,
            "Mount": [
                {
                    "Target": mount.target,
                    "Type": mount.type.value,
                    "Flags": ["ro"] if mount.is_read_only else [],
                    "PublicKey": mount.public_key,
                    "Roothash": mount.root_hash,
                }
                for mount in self.mounts
            ],
        }
        if self.memory_size is not None:
            settings["MemorySize"] = self.memory_size
        if self.hostname is not None:
            settings["Hostname"] = self.hostname
        return settings


def parse_json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that ``data`` is; no name may occur twice.

    Raises:
        ValueError: it is not one; with the reason.
    """
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("not an object")
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is in it twice")
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bool(name: str, value: Any) -> bool:
    # Both are in use: "Debug": 1 is in the documentation.
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        raise UsageError(f"{name}: must be true or false")
    return bool(value)


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise UsageError(f"{name}: must be a number, 0 or more")
    return value


def _short(name: str, value: Any) -> int:
    number = _number(name, value)
    if number >= 1 << 16:
        raise UsageError(f"{name}: must be a number up to 65535")
    return number


def _size(name: str, value: Any) -> int:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,18})([kKmMgG]?)", value)
        if match is None:
            raise UsageError(f'{name}: must be bytes, or a string of a number with k, m or g, as "40m"')
        value = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    return _number(name, value)


def _memory_size(name: str, value: Any) -> int:
    size = _size(name, value)
    if size < MIN_MEMORY_SIZE:
        raise UsageError(f"{name}: {size} bytes are too little; give at least {MIN_MEMORY_SIZE >> 20}m")
    return size


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name}: must be a string")
    if len(value) > _MAX_STRING:
        raise UsageError(f"{name}: a string of {len(value)} characters; {_MAX_STRING} are the most")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: not valid Unicode") from error
    if "\0" in value:
        raise UsageError(f"{name}: it contains a NUL character")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """A list of strings; a single one may stand for a list of one (doc/sign-package.md)."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise UsageError(f"{name}: must be a list of strings")
    if len(entries) > _MAX_ENTRIES:
        raise UsageError(f"{name}: {len(entries)} entries; {_MAX_ENTRIES} are the most")
    return tuple(_string(name, entry) for entry in entries)


def _directory(name: str, value: Any) -> str:
    path = _string(name, value)
    if (
        not path.startswith("/")
        or path.startswith("//")
        or path != str(PurePosixPath(path))
        or ".." in PurePosixPath(path).parts
        or len(path.encode()) > _MAX_PATH
    ):
        raise UsageError(f"{name}: must be an absolute path, without .. and needless slashes")
    return path


def _path(name: str, value: Any) -> str:
    path = _directory(name, value)
    if path == "/":
        raise UsageError(f"{name}: cannot be /")
    return path


def _variables(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for text in _strings(name, value):
        variable, equals, content = text.partition("=")
        if not variable or not equals:
            raise UsageError(f"{name}: {text!r} must be NAME=VALUE")
        if variable in found:
            raise UsageError(f"{name}: {variable} is in it twice")
        found[variable] = content
    return tuple(found.items())


def _variable_names(name: str, value: Any) -> tuple[str, ...]:
    names = _strings(name, value)
    for variable in names:
        if not variable or "=" in variable:
            raise UsageError(f"{name}: {variable!r} is not the name of a variable")
    return names


def _hostname(name: str, value: Any) -> str:
    text = _string(name, value)
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", text) or len(text) > MAX_HOSTNAME:
        raise UsageError(f"{name}: must be up to {MAX_HOSTNAME} letters, digits, dots and hyphens")
    return text


def _mounts(name: str, value: Any) -> tuple[MountEntry, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(f"{name}: must be a list of objects")
    if len(value) > _MAX_ENTRIES:
        raise UsageError(f"{name}: {len(value)} entries; {_MAX_ENTRIES} are the most")
    mounts = tuple(_mount(f"{name}[{index}]", entry) for index, entry in enumerate(value))
    for index, mount in enumerate(mounts):
        if any(mount.target == other.target for other in mounts[:index]):
            raise UsageError(f"{name}[{index}].Target: {mount.target} is a target twice")
    return mounts


def _mount(name: str, entry: Mapping[str, Any]) -> MountEntry:
    for key in entry:
        if key not in ("Target", "Type", "Flags", "PublicKey", "Roothash"):
            raise UsageError(f"{name}.{key}: no such setting")
    for key in "Target", "Type":
        if key not in entry:
            raise UsageError(f"{name}.{key}: missing")
    kinds = [kind.value for kind in MountType]
    if entry["Type"] not in kinds:
        raise UsageError(f"{name}.Type: must be one of {', '.join(kinds)}")
    kind = MountType(entry["Type"])
    flags = _strings(f"{name}.Flags", entry.get("Flags", []))
    for flag in flags:
        if flag not in ("ro", "rw"):
            raise UsageError(f"{name}.Flags: {flag!r} is unknown; ro and rw are known")
    if {"ro", "rw"} <= set(flags):
        raise UsageError(f"{name}.Flags: ro and rw exclude each other")
    trust: dict[str, str | None] = {"PublicKey": None, "Roothash": None}
    for key in trust:
        if entry.get(key) is not None:
            if kind is not MountType.EXT2:
                raise UsageError(f"{name}.{key}: is for the Type ext2; {kind.value} has nobody to vouch for it")
            trust[key] = _string(f"{name}.{key}", entry[key])
    return MountEntry(
        _path(f"{name}.Target", entry["Target"]), kind, "ro" in flags, trust["PublicKey"], trust["Roothash"]
    )


_OPTIONAL: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "Debug": ("is_debug", _bool),
    "ProductID": ("product_id", _short),
    "SecurityVersion": ("security_version", _short),
    "MemorySize": ("memory_size", _memory_size),
    "UserMemSize": ("memory_size", _memory_size),
    "ApplicationParameters": ("application_parameters", _strings),
    "HostApplicationParameters": ("takes_host_parameters", _bool),
    "EnvironmentVariables": ("environment", _variables),
    "HostEnvironmentVariables": ("host_environment", _variable_names),
    "CurrentWorkingDirectory": ("directory", _directory),
    "Hostname": ("hostname", _hostname),
    "Mount": ("mounts", _mounts),
}
"""Settings by name: the parameter of ``Configuration``, and what checks and converts the value."""

WITHOUT_MEANING: dict[str, Callable[[str, Any], Any]] = {
    "CreateZeroBaseEnclave": _bool,
    "EnclaveStartAddress": _number,
    "ExecStack": _bool,
    "ForkMode": _string,
    "HostUDS": _bool,
    "KernelMemSize": _size,
    "MainStackSize": _size,
    "MaxAffinityCPUs": _number,
    "NoBrk": _bool,
    "NumKernelPages": _number,
    "NumStackPages": _number,
    "NumUserThreads": _number,
    "StackMemSize": _size,
    "SyslogLevel": _string,
    "ThreadStackSize": _size,
    "UnhandledSyscallEnosys": _bool,
}
"""Settings of the enclave and of Mystikos' own kernel, which a program on Linux has neither of. Accepted, and dropped.

Sources: ``tools/myst/config.c``, for KernelMemSize, NumKernelPages, NumStackPages, NumUserThreads and StackMemSize its
early versions, for SyslogLevel ``doc/sign-package.md``. Not among them: ``Secret``, without which a program would miss
what it was promised.
"""
