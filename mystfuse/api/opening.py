"""Opening an image in a trio event loop, by the arguments of ``OpenArguments``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from mystfuse.api.arguments import OPEN_DEFAULTS, HashOrKey, OpenArguments, StrPath, check_arguments
from mystfuse.api.async_image import AsyncImage
from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret
from mystfuse.devices.open_source import opening_of
from mystfuse.devices.patience import timed_out
from mystfuse.devices.remote_options import RemoteOptions
from mystfuse.devices.source import Source
from mystfuse.errors import UsageError
from mystfuse.image.keys import Keys
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.open import open_tree
from mystfuse.trust.sources import collect_trust, parse_root_hash, read_public_keys

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey


class ImageToOpen:
    """An image with what is needed to open it, once.

    Args:
        path: of its file.
        arguments: hashes, keys and what they name are read here.

    Raises:
        UsageError: a wrong argument.
    """

    def __init__(self, path: StrPath, arguments: OpenArguments) -> None:
        given: OpenArguments = {**OPEN_DEFAULTS, **arguments}
        check_arguments(given)
        hashes = [_load_root_hash(value) for value in given["roothashes"]]
        public_keys = [public_key for value in given["pubkeys"] for public_key in _load_public_keys(value)]
        self.path = os.fspath(path)
        self._trust = collect_trust(
            hashes, public_keys, given["insecure"], given["hash_offset"], trust_self=given["trust"] == "self"
        )
        self._keys = Keys(
            _secret(given["key"], "key") if given["key"] is not None else None,
            _secret(given["passphrase"], "passphrase") if given["passphrase"] is not None else None,
            limit=KdfLimit(*(given["kdf_limit"] or ())),
        )
        self._io_timeout = given["io_timeout"]
        self._remote_options = _remote_options(given)

    def start_deriver(self) -> None:
        """Start the process that derives keys, if there is a key: before a thread that is to open the image."""
        if self._keys:
            self._keys.start_deriver()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AsyncImage]:
        """The open image, under trio; raises as ``mystfuse.open_image``."""
        try:
            source = await _open_source(self.path, self._io_timeout, self._remote_options)
            try:
                async with open_tree(source, self._trust, self._keys, self._io_timeout) as tree:
                    yield AsyncImage(tree.volume, tree.trust, tree.pipeline)
            finally:
                source.close()
        finally:
            self._keys.wipe()
            await self._keys.end_deriver()

    def give_up(self) -> None:
        """Wipe the keys, and end the process that derives keys, if ``opened`` was never entered."""
        self._keys.wipe()
        self._keys.kill_deriver()


async def _open_source(path: str, io_timeout: float, options: RemoteOptions) -> Source:
    run, abandon = opening_of(path, io_timeout, options)
    try:
        with trio.fail_after(io_timeout):
            return await call_in_thread(run)
    except BaseException as error:
        abandon()
        if isinstance(error, trio.TooSlowError):
            raise timed_out(path, io_timeout) from None
        raise


def _remote_options(given: OpenArguments) -> RemoteOptions:
    def path(value: StrPath | None) -> str | None:
        return None if value is None else os.fspath(value)

    return RemoteOptions(
        mirrors=tuple(given["mirrors"]),
        cache=path(given["cache"]),
        cache_size=given["cache_size"],
        prefetch=path(given["prefetch"]),
        ca_certificates=path(given["ca_certificates"]),
        client_certificate=path(given["client_certificate"]),
        trusts_cache=not given["insecure"],
    )


def _load_root_hash(value: HashOrKey) -> bytes:
    if not isinstance(value, bytes):
        return parse_root_hash(os.fspath(value))
    if len(value) not in (32, 64):
        raise UsageError(f"a root hash of {len(value)} bytes: sha256 has 32, sha512 64")
    return value


def _load_public_keys(value: HashOrKey) -> list[PublicKey]:
    if not isinstance(value, bytes):
        return read_public_keys(os.fspath(value))
    # Only here: cryptography takes long to import.
    from mystfuse.trust.signature import PublicKey

    return PublicKey.all_from_pem(value, "pubkeys")


def _secret(value: str | bytes, name: str) -> Secret:
    if not value:
        raise UsageError(f"{name}: empty")
    return Secret.copy_of(os.fsencode(value))
