"""The arguments that ``open_image``, ``Image``, ``mount`` and the fsspec file system share: their one description.

A function takes them as ``**arguments: Unpack[OpenArguments]``, which is what type checkers go by, and ``takes`` gives
it what ``help`` shows: the parameters one by one, and their description. The command line's options for the same are in
``cli.given_image``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Final, Literal, TypedDict, TypeVar

from mystfuse.devices.patience import IO_TIMEOUT
from mystfuse.errors import UsageError

StrPath = str | os.PathLike[str]
HashOrKey = str | bytes | os.PathLike[str]
"""A root hash or public key itself, or the path of a file that holds it."""
F = TypeVar("F", bound=Callable[..., Any])


class OpenArguments(TypedDict, total=False):
    """
    roothashes: trusted root hashes: hex digits, the 32 (sha512: 64) bytes, or the path of a file with hex digits.
    pubkeys: trusted public keys: PEM, or the path of a PEM file. What is in /etc/mystfuse/trust.d counts as well.
    trust: "self" trusts the image by itself when nothing else is trusted: damage is found, a replaced image is not.
    insecure: load anything, even a bare EXT2 file system; where there is a hash tree it is still checked.
    hash_offset: where the verity superblock is, in an image that has no signature block; goes with one root hash.
    key: master key of an encrypted image: the bytes, or hex digits.
    passphrase: passphrase of an encrypted image; of the two, give one.
    kdf_limit: what deriving keys may cost for all of the header: seconds, and bytes of memory; (60, 1 << 30) if None.
        It happens in a process of its own.
    io_timeout: seconds after which opening or reading what storage does not answer fails.
    cache: a directory for what is fetched of an image elsewhere; None: in memory.
    cache_size: bytes that it may hold.
    mirrors: further addresses of the same image.
    prefetch: what to fetch unasked: "all", or the path of a file by ``mystfuse trace``.
    ca_certificates: a PEM file with the authorities to trust about servers, instead of the system's.
    client_certificate: a PEM file with our certificate and key, for servers that ask.
    """

    roothashes: Iterable[HashOrKey]
    pubkeys: Iterable[HashOrKey]
    trust: Literal["self"] | None
    insecure: bool
    hash_offset: int | None
    key: bytes | str | None
    passphrase: str | bytes | None
    kdf_limit: tuple[float, int] | None
    io_timeout: float
    cache: StrPath | None
    cache_size: int | None
    mirrors: Iterable[str]
    prefetch: StrPath | None
    ca_certificates: StrPath | None
    client_certificate: StrPath | None


class MountArguments(OpenArguments, total=False):
    """
    read_only: refuse writes.
    overlay_limit: bytes of memory for written data; None: half of the available memory.
    overlay_store: a directory for written data beyond that, which go there encrypted, into a file without a name.
    options: further mount options, as ``mystfuse mount -o`` takes them.
    """

    read_only: bool
    overlay_limit: int | None
    overlay_store: StrPath | None
    options: Sequence[str]


_NOT_GIVEN: Final = None
"""A name for it, because bandit takes a value behind ``"passphrase"`` for a password that stands in the code."""
OPEN_DEFAULTS: OpenArguments = {
    "roothashes": (),
    "pubkeys": (),
    "trust": None,
    "insecure": False,
    "hash_offset": None,
    "key": _NOT_GIVEN,
    "passphrase": _NOT_GIVEN,
    "kdf_limit": None,
    "io_timeout": IO_TIMEOUT,
    "cache": None,
    "cache_size": None,
    "mirrors": (),
    "prefetch": None,
    "ca_certificates": None,
    "client_certificate": None,
}
MOUNT_DEFAULTS: MountArguments = {
    **OPEN_DEFAULTS,
    "read_only": False,
    "overlay_limit": None,
    "overlay_store": None,
    "options": (),
}


def takes(defaults: Mapping[str, Any], *kinds: type) -> Callable[[F], F]:
    """A decorator for a function, or a class, whose last parameter is ``**arguments: Unpack[...]``.

    ``help`` and ``inspect.signature`` show the arguments by name, other names are a TypeError, and ``{arguments}`` in
    the docstring becomes their description.

    Args:
        defaults: of all of them, by name.
        kinds: the TypedDicts that describe them.
    """

    def decorate(target: F) -> F:
        _describe(target, "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in kinds))
        # Strings here, since annotations are not evaluated.
        types = {
            name: getattr(of, "__forward_arg__", of) for kind in kinds for name, of in kind.__annotations__.items()
        }
        if not isinstance(target, type):
            return _named(target, defaults, types)
        initialize = "__init__"
        function = _named(getattr(target, initialize), defaults, types)
        setattr(target, initialize, function)
        if type(target) is not type:
            # A metaclass may hide how its classes are called.
            signature = inspect.signature(function)
            own = list(signature.parameters.values())[1:]
            target.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return target

    return decorate


def _describe(target: Callable[..., Any], description: str) -> None:
    lines = (target.__doc__ or "").split("\n")
    for number, line in enumerate(lines):
        if line.strip() == "{arguments}":
            indent = line[: line.index("{")]
            lines[number] = "\n".join(indent + part for part in description.split("\n"))
    target.__doc__ = "\n".join(lines)


def _named(function: F, defaults: Mapping[str, Any], types: Mapping[str, Any]) -> F:
    signature = inspect.signature(function)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    named = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types.get(name, inspect.Parameter.empty)
        )
        for name, default in defaults.items()
    ]
    signature = signature.replace(parameters=[*own, *named])

    @wraps(function)
    def call(*given: Any, **arguments: Any) -> Any:
        try:
            signature.bind(*given, **arguments)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}: {error}") from None
        return function(*given, **arguments)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def check_arguments(arguments: OpenArguments, **lists: Iterable[object]) -> None:
    """Check arguments that have all their names.

    Args:
        lists: further ones that must be lists.

    Raises:
        UsageError: ``trust`` is an unknown word, two keys are given, a list is a single string, or a time is not more
            than 0.
    """
    if arguments["trust"] not in (None, "self"):
        raise UsageError(f'trust={arguments["trust"]!r}: only "self" and None are possible')
    for name, given in {
        "roothashes": arguments["roothashes"],
        "pubkeys": arguments["pubkeys"],
        **lists,
        "mirrors": arguments["mirrors"],
    }.items():
        if isinstance(given, str | bytes | os.PathLike):
            raise UsageError(f"{name} must be a list of them, not a single one")
    seconds = {"io_timeout": arguments["io_timeout"], "kdf_limit": (arguments["kdf_limit"] or (1, 0))[0]}
    for name, number in seconds.items():
        if not number > 0:
            raise UsageError(f"{name}: {number} seconds; more than 0 are needed (math.inf: without a limit)")
    if arguments["key"] is not None and arguments["passphrase"] is not None:
        raise UsageError("key and passphrase exclude each other: one of them opens the image")
