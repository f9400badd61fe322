"""Making an image from a directory: mke2fs makes and fills the file system, we add the hash tree and the fssig."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

from mystfuse.build.hash_tree import write_all
from mystfuse.build.inode_stamps import stamp_inodes
from mystfuse.build.luks_format import Random, encrypt_zeros, make_luks_header
from mystfuse.build.seal import VERITY_BLOCK_SIZE, seal, truncate
from mystfuse.build.source_tree import SourceTree, scan
from mystfuse.build.tree_limits import choose_block_size
from mystfuse.crypto.sector_ciphers import XtsCipher
from mystfuse.errors import MystfuseError, UsageError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.formats.fssig import Fssig
from mystfuse.formats.verity import VOUCHER
from mystfuse.image.keys import Encryption
from mystfuse.image.progress import Progress
from mystfuse.system.atomic_file import AtomicFile, WritableFile
from mystfuse.system.child_process import run_program
from mystfuse.trust.signature import SigningKey

MIN_SIZE = 8 << 20
"""The original's smallest file system."""
MIB = 1 << 20
SMALL_LIMIT = 512 * MIB
"""mke2fs.conf: smaller file systems get 1 KiB blocks and an inode for 4 KiB, others 4 KiB blocks and one for 16 KiB."""
_MAX_ATTEMPTS = 12
_RESERVED = 0.95
"""mke2fs keeps 5 % for root."""


@dataclass(frozen=True, slots=True)
class Mkext2Options:
    """How to make an image. Sizes are bytes.

    ``epoch`` (seconds; SOURCE_DATE_EPOCH) makes the result depend on the directory alone: no later time stamps than
    that, and UUIDs (by them the salt) derived from the directory unless given.
    """

    size: int = 0
    free: int = 0
    block_size: int | None = None
    salt: bytes | None = None
    uuid: UUID | None = None
    signing_key: SigningKey | None = None
    encryption: Encryption | None = None
    epoch: int | None = None
    trace: Callable[[str], None] | None = None
    """Called with each command line that is run."""

    def __post_init__(self) -> None:
        if self.size and self.size < MIN_SIZE:
            raise UsageError(f"--size {self.size} is less than {MIN_SIZE} (8 MiB), the smallest there is")
        if self.block_size is not None and self.block_size not in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise UsageError(f"--block-size {self.block_size} is not 1024, 2048, 4096, ... or 65536")
        if self.salt is not None and len(self.salt) > 256:
            raise UsageError(f"--salt has {len(self.salt)} bytes; dm-verity has room for 256")
        if self.salt is not None and self.salt.startswith(VOUCHER):
            raise UsageError(
                f"--salt {self.salt.hex()}: salts that begin so vouch for the superblock, and are computed"
            )


OpenEncrypted = Callable[[AtomicFile, int, XtsCipher], AbstractContextManager[WritableFile]]
"""Opens a file of plaintext for the encrypted bytes of another file from an offset on."""


def mkext2(
    directory: Path,
    target: Path,
    options: Mkext2Options,
    force: bool,
    progress: Progress,
    open_encrypted: OpenEncrypted | None = None,
) -> Fssig:
    """Make image ``target`` from ``directory``; it appears under its name only when it is complete.

    Args:
        open_encrypted: opens the file into which mke2fs writes an encrypted image; see ``encrypted_file``.

    Raises:
        UsageError: ``directory`` is not one.
        MystfuseError: reading, writing or mke2fs failed; nothing is left behind.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
    with AtomicFile(target, force, mode=0o666 if options.encryption is None else 0o600) as file:
        tree = scan(directory, options.epoch)
        options = _with_block_size(tree, options)
        uuid, tree_uuid, hash_seed = _identities(tree, options)
        if options.encryption is None:
            with progress("copying files", None):
                hash_offset = _make_filesystem(file, directory, tree, options, uuid, hash_seed)
        else:
            assert open_encrypted is not None
            hash_offset = _make_encrypted(file, directory, tree, options, uuid, hash_seed, progress, open_encrypted)
        fssig = seal(file, hash_offset, options.signing_key, progress, options.salt, tree_uuid)
        file.commit()
    return fssig


def _identities(tree: SourceTree, options: Mkext2Options) -> tuple[UUID, UUID, UUID]:
    """File-system UUID, hash-tree UUID, and directory hash seed: random, or derived from the directory."""
    if options.epoch is None:
        uuid, tree_uuid, hash_seed = uuid4(), uuid4(), uuid4()
    else:

        def derived(what: bytes) -> bytes:
            return hashlib.sha256(b"mystfuse " + what + tree.digest).digest()

        uuid, tree_uuid, hash_seed = (
            UUID(bytes=derived(what)[:16], version=4) for what in (b"uuid", b"tree uuid", b"hash seed")
        )
    return options.uuid or uuid, tree_uuid, hash_seed


def _make_encrypted(
    file: AtomicFile,
    directory: Path,
    tree: SourceTree,
    options: Mkext2Options,
    uuid: UUID,
    hash_seed: UUID,
    progress: Progress,
    open_encrypted: OpenEncrypted,
) -> int:
    """Make a LUKS header and an encrypted file system behind it; returns the size of both."""
    encryption = options.encryption
    assert encryption is not None
    random: Random = secrets.token_bytes
    if options.epoch is not None:
        random = _reproducible_random(encryption, tree.digest)
    try:
        header = make_luks_header(encryption, random, progress, options.epoch is not None)
        cipher = XtsCipher(encryption.master_key.view)
    finally:
        encryption.wipe()
    # In this order: progress has a thread, which must not exist during a fork.
    with open_encrypted(file, len(header), cipher) as plain, progress("copying files", None):
        size = _make_filesystem(plain, directory, tree, options, uuid, hash_seed)
    with progress("encrypting free space", size) as advance:
        encrypt_zeros(file, len(header), size, cipher, advance)
    write_all(file.fd, header, 0)
    return len(header) + size


def _reproducible_random(encryption: Encryption, digest: bytes) -> Random:
    """Bytes derived from key and directory, new ones at each call."""
    calls = count()

    def random(length: int) -> bytes:
        stream = hashlib.shake_256(b"mystfuse luks" + next(calls).to_bytes(8, "big") + digest)
        stream.update(encryption.master_key.view)
        return stream.digest(length)

    return random


def planned_size(tree: SourceTree, options: Mkext2Options) -> tuple[int, int]:
    """The size of the file system, and its minimum of inodes.

    The original's rule (its ``mkext2``): the directory's size rounded up to 1 MiB, times 1.5, at least 8 MiB. It
    ignores that small files fill whole blocks, and inodes: we add room for both.
    """
    size = max(_round_up(tree.apparent_size, MIB) * 3 // 2, MIN_SIZE, options.size)
    while True:
        block_size = options.block_size or (1024 if size < SMALL_LIMIT else 4096)
        inodes = tree.inodes + tree.inodes // 16 + 64
        ratio = 4096 if size < SMALL_LIMIT else 16384
        inode_tables = max(inodes, size // ratio) * 256
        needed = tree.content_size(block_size) + options.free
        needed = int((needed + inode_tables) / _RESERVED) + size // 512 + 64 * block_size
        if needed <= size:
            return _round_up(size, max(block_size, VERITY_BLOCK_SIZE)), inodes
        size = _round_up(needed, MIB)


def _with_block_size(tree: SourceTree, options: Mkext2Options) -> Mkext2Options:
    """The options with a block size for the directory, where mke2fs would choose too small a one."""
    default = 1024 if planned_size(tree, options)[0] < SMALL_LIMIT else 4096
    block_size = choose_block_size(
        options.block_size, default, tree.needed_block, tree.largest_piece, tree.largest_file
    )
    return replace(options, block_size=block_size)


def _make_filesystem(
    file: WritableFile, directory: Path, tree: SourceTree, options: Mkext2Options, uuid: UUID, hash_seed: UUID
) -> int:
    """Run mke2fs until the directory fits; returns the size of the file system."""
    size, inodes = planned_size(tree, options)
    for _ in range(_MAX_ATTEMPTS):
        truncate(file, 0)
        truncate(file, size)
        if _run_mke2fs(file, directory, size, inodes, options, uuid, hash_seed):
            superblock = _read_superblock(file.fd)
            missing = options.free - superblock.block_size * max(
                superblock.s_free_blocks_count - superblock.s_r_blocks_count, 0
            )
            if missing <= 0:
                stamp_inodes(file.fd, superblock, directory, tree.late_times, options.epoch)
                return size
        else:
            missing = size // 4
        size = _round_up(size + int(missing / _RESERVED), MIB)
        inodes = max(tree.inodes + tree.inodes // 4 + 64, inodes)
    raise MystfuseError(f"{directory}: mke2fs cannot fit it into {size} bytes")


def _run_mke2fs(
    file: WritableFile,
    directory: Path,
    size: int,
    inodes: int,
    options: Mkext2Options,
    uuid: UUID,
    hash_seed: UUID,
) -> bool:
    """Make and fill the file system; False when the directory does not fit.

    Args:
        inodes: the minimum; mke2fs makes this many, or more by its own rule.

    Raises:
        MystfuseError: mke2fs is missing, or failed in another way.
    """
    mke2fs = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mke2fs is None:
        raise MystfuseError("mke2fs is not installed (apt install e2fsprogs)")
    command = [mke2fs, "-q", "-F", "-t", "ext2", "-U", str(uuid), "-E", f"hash_seed={hash_seed}"]
    if options.block_size is not None:
        command += ["-b", str(options.block_size)]
    place = [file.path, f"{size // 1024}k"]
    # mke2fs sorts names by the locale, and we parse its messages.
    environment = {**os.environ, "LC_ALL": "C"}
    if inodes > _inodes_by_default([mke2fs, "-n", *command[2:], *place], environment, file):
        command += ["-N", str(inodes)]
    command += ["-d", os.fspath(directory.resolve()), *place]
    if options.epoch is not None:
        environment["E2FSPROGS_FAKE_TIME"] = str(max(options.epoch, 1))
    if options.trace is not None:
        options.trace(" ".join(command))
    # If we are killed, mke2fs ends too. Not by preexec_fn: Python loses a ^C that comes as it forks.
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        # Nor when we have been killed before it said so.
        script = 'test "$PPID" = "$0" && exec "$@"'
        command = [setpriv, "--pdeathsig", "KILL", "/bin/sh", "-c", script, str(os.getpid()), *command]
    status, said = run_program(command, environment, file.fd, file.server, with_errors=True)
    if status == 0:
        return True
    if status < 0:
        raise MystfuseError(f"mke2fs was ended by {signal.Signals(-status).name}")
    if "Could not allocate" in said:
        return False
    if "Insufficient space to store extended attribute data" in said:
        raise MystfuseError(f"{directory}: a file's extended attributes do not fit one block (give --block-size)")
    message = " ".join(said.split()) or f"exit status {status}"
    raise MystfuseError(f"mke2fs failed: {message}")


def _inodes_by_default(dry_run: list[str], environment: dict[str, str], file: WritableFile) -> int:
    """The number of inodes that mke2fs would make by itself: it depends on mke2fs.conf, so we ask mke2fs."""
    match = re.search(r"\b(\d+) inodes\b", run_program(dry_run, environment, file.fd, file.server).said)
    # Without an answer we request no number. The real run will report the error.
    return int(match[1]) if match else sys.maxsize


def _read_superblock(fd: int) -> Superblock:
    return Superblock.parse(os.pread(fd, SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
