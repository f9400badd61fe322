"""The Python interface: what ``import mystfuse`` gives, under the names it has there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import trio

from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret
from mystfuse.devices.patience import IO_TIMEOUT, Opening, timed_out
from mystfuse.devices.source import FileSource, Source
from mystfuse.errors import UsageError, innermost
from mystfuse.image.keys import Keys
from mystfuse.image.pipeline import open_trusted, run_pipeline
from mystfuse.image.progress import Progress
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.signature import PublicKey
from mystfuse.trust.sources import TrustOptions, collect_trust, parse_root_hash, read_public_keys
from mystfuse.volume.volume import Volume

StrPath = str | os.PathLike[str]


@asynccontextmanager
async def open_image(
    image: StrPath,
    *,
    roothashes: Iterable[str | bytes | os.PathLike[str]] = (),
    pubkeys: Iterable[str | bytes | os.PathLike[str]] = (),
    trust: Literal["self"] | None = None,
    insecure: bool = False,
    hash_offset: int | None = None,
    key: bytes | str | None = None,
    passphrase: str | bytes | None = None,
    kdf_limit: tuple[float, int] | None = None,
    io_timeout: float = IO_TIMEOUT,
) -> AsyncIterator[ImageTree]:
    """Open an image for reading, without a mount and without FUSE, for the time of the block. Needs trio.

    Every block is verified before anything of it is seen, as on a mount.

    Args:
        image: path of the image.
        roothashes: trusted root hashes: hex digits, the 32 (sha512: 64) bytes, or the path of a file with hex digits.
        pubkeys: trusted public keys: PEM, or the path of a PEM file. What is in /etc/mystfuse/trust.d counts as well.
        trust: "self" lets the image vouch for itself when nobody is trusted: damage is found, a replaced image is not.
        insecure: open anything, even a bare EXT2 file system; where there is a hash tree it is still checked.
        hash_offset: where the verity superblock is, in an image that has no signature block; goes with one root hash.
        key: master key of an encrypted image: the bytes, or hex digits.
        passphrase: passphrase of an encrypted image; of the two, give one.
        kdf_limit: what deriving keys may cost for all of the header: seconds, and bytes of memory; (60, 1 << 30) if
            None. It happens in a process of its own.
        io_timeout: seconds after which opening or reading what storage does not answer fails.

    Raises:
        NotTrusted: nobody who is trusted vouches for the image.
        UsageError: an argument is not what it should be.
        WrongKey: the image is encrypted and the key does not open it, or a key is given and it is not.
        FormatError, IntegrityError, ImageReadError: not an image, or it cannot be read.
    """
    options = _load_trust(roothashes, pubkeys, trust, insecure, hash_offset)
    keys = _load_keys(key, passphrase)
    if kdf_limit is not None:
        keys.limit = KdfLimit(*kdf_limit)
    try:
        source = await _open_source(os.fspath(image), io_timeout)
        try:
            async with open_tree(source, options, keys, io_timeout) as tree:
                yield tree
        finally:
            source.close()
    finally:
        keys.wipe()
        await keys.end_deriver()


async def _open_source(path: str, io_timeout: float) -> FileSource:
    opening = Opening(path)
    try:
        with trio.fail_after(io_timeout):
            return await call_in_thread(opening.run)
    except BaseException as error:
        opening.abandon()
        if isinstance(error, trio.TooSlowError):
            raise timed_out(path, io_timeout) from None
        raise


@contextmanager
def _no_progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@asynccontextmanager
async def open_tree(
    source: Source, trust: TrustOptions, keys: Keys, io_timeout: float, progress: Progress = _no_progress
) -> AsyncIterator[ImageTree]:
    """Open an image and read its superblock; raises as ``open_image``, and what the block raises, as it is.

    Args:
        keys: wiped when the block begins.
        progress: shown while a passphrase is tried.
    """
    image = await open_trusted(source, trust, io_timeout)
    of_block: BaseException | None = None
    of_pipeline: BaseException | None = None
    try:
        async with run_pipeline(image, keys, io_timeout, progress) as pipeline:
            tree = ImageTree(await Volume.open(pipeline.device, io_timeout=io_timeout), image.trust)
            try:
                yield tree
            except BaseException as error:
                # Kept out of the pipeline's nursery, which would put it into a group, or take its own one apart.
                of_block = error
    except BaseExceptionGroup as group:
        of_pipeline = innermost(group)
    if of_block is not None and not isinstance(of_block, trio.Cancelled):
        raise of_block
    # That the block was cancelled may be for what happened to the pipeline.
    cause = of_pipeline or of_block
    if cause is not None:
        raise cause


def _load_trust(
    roothashes: Iterable[str | bytes | os.PathLike[str]],
    pubkeys: Iterable[str | bytes | os.PathLike[str]],
    trust: str | None,
    insecure: bool,
    hash_offset: int | None,
) -> TrustOptions:
    if trust not in (None, "self"):
        raise UsageError(f'trust={trust!r}: only "self" and None are possible')
    for name, given in (("roothashes", roothashes), ("pubkeys", pubkeys)):
        if isinstance(given, str | bytes | os.PathLike):
            raise UsageError(f"{name} must be a list of them, not a single one")
    hashes = [_load_root_hash(value) for value in roothashes]
    keys = [key for value in pubkeys for key in _load_public_keys(value)]
    return collect_trust(hashes, keys, insecure, hash_offset, trust_self=trust == "self")


def _load_root_hash(value: str | bytes | os.PathLike[str]) -> bytes:
    if not isinstance(value, bytes):
        return parse_root_hash(os.fspath(value))
    if len(value) not in (32, 64):
        raise UsageError(f"a root hash of {len(value)} bytes: sha256 has 32, sha512 64")
    return value


def _load_public_keys(value: str | bytes | os.PathLike[str]) -> list[PublicKey]:
    return PublicKey.all_from_pem(value, "pubkeys") if isinstance(value, bytes) else read_public_keys(os.fspath(value))


def _load_keys(key: bytes | str | None, passphrase: str | bytes | None) -> Keys:
    if key is not None and passphrase is not None:
        raise UsageError("key and passphrase exclude each other: one of them opens the image")
    if key is not None:
        return Keys(master_key=_secret(key, "key"))
    return Keys(passphrase=_secret(passphrase, "passphrase")) if passphrase is not None else Keys()


def _secret(value: str | bytes, name: str) -> Secret:
    if not value:
        raise UsageError(f"{name}: empty")
    return Secret.copy_of(os.fsencode(value))
