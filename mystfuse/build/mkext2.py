"""Making an image from a tree: mke2fs makes and fills the file system, we add the hash tree and the fssig."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

from mystfuse.archives.file_tree import Contents
from mystfuse.build.filesystem_kind import Kind, find_kind
from mystfuse.build.filesystem_size import (
    MIB,
    MIN_SIZE,
    RESERVED,
    SMALL_LIMIT,
    Plan,
    Smallest,
    Wishes,
    check_inodes,
    inode_ratio,
    least,
    needed_inodes,
    planned,
    round_up,
)
from mystfuse.build.filled_blocks import count_blocks
from mystfuse.build.hash_tree import write_all
from mystfuse.build.inode_stamps import stamp_inodes
from mystfuse.build.luks_format import Random, encrypt_zeros, make_luks_header
from mystfuse.build.made_image import MadeImage
from mystfuse.build.mke2fs import Format, Source, fill, read_superblock
from mystfuse.build.seal import seal, truncate
from mystfuse.build.source_tree import Selection, SourceTree
from mystfuse.build.tree_limits import choose_block_size
from mystfuse.build.tree_source import TreeSource
from mystfuse.crypto.sector_ciphers import XtsCipher
from mystfuse.errors import MystfuseError, UsageError
from mystfuse.ext2.superblock import Superblock
from mystfuse.image.keys import Encryption
from mystfuse.image.progress import Progress
from mystfuse.system.atomic_file import AtomicFile, WritableFile
from mystfuse.trust.signature import SigningKey

_MAX_ATTEMPTS = 12


@dataclass(frozen=True, slots=True)
class Mkext2Options:
    """How to make an image.

    ``epoch`` (seconds; SOURCE_DATE_EPOCH) makes the result depend on the tree alone: no later time stamps than that,
    and UUIDs (by them the salt) derived from the tree unless given.
    """

    wishes: Wishes = Wishes()  # noqa: RUF009  # it is frozen
    block_size: int | None = None
    type: str = "ext2"
    """ext2, ext3 or ext4."""
    features: str | None = None
    """As mke2fs -O takes them: which to add to those of the type, and which to take away."""
    selection: Selection | None = None
    """What is taken of the tree; None: everything."""
    owner: tuple[int, int] | None = None
    """User and group of all files; None: each its own."""
    salt: bytes | None = None
    uuid: UUID | None = None
    signing_key: SigningKey | None = None
    encryption: Encryption | None = None
    epoch: int | None = None
    trace: Callable[[str], None] | None = None
    """Called with each command line that is run."""
    warn: Callable[[str], None] = lambda message: None
    """Called with what should be known before the work begins."""

    def __post_init__(self) -> None:
        size = self.wishes.size
        if size and size < MIN_SIZE:
            raise UsageError(f"--size {size} is less than {MIN_SIZE} (8 MiB), the smallest but for --size min")
        if self.block_size is not None and self.block_size not in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise UsageError(f"--block-size {self.block_size} is not 1024, 2048, 4096, ... or 65536")


OpenEncrypted = Callable[[AtomicFile, int, XtsCipher], AbstractContextManager[WritableFile]]
"""Opens a file of plaintext for the encrypted bytes of another file from an offset on."""


def mkext2(
    source: TreeSource,
    target: Path,
    options: Mkext2Options,
    force: bool,
    progress: Progress,
    open_encrypted: OpenEncrypted | None = None,
) -> MadeImage:
    """Make image ``target`` from a tree; it appears under its name only when it is complete.

    Args:
        open_encrypted: opens the file into which mke2fs writes an encrypted image; see ``encrypted_file``.

    Raises:
        UsageError: something that is to be taken is not there.
        MountError: FUSE is not available, which encrypting, archives, and taking a part of a directory need.
        MystfuseError: reading, writing or mke2fs failed; nothing is left behind.
    """
    encryption, is_shown = options.encryption, source.directory is None or options.selection is not None
    with AtomicFile(target, force, mode=0o666 if encryption is None else 0o600) as file, ExitStack() as stack:
        kind = find_kind(_any_form(options))
        if kind.only_for_reading:
            options.warn(f"a mount of it will be read-only because of: {' '.join(kind.only_for_reading)}")
        is_kept = is_shown or options.wishes.is_smallest
        tree = source.scan(options.epoch, options.selection, options.owner, is_kept)
        check_inodes(source.name, tree, options.wishes, kind)
        maker = _Maker(source, tree, options, kind)
        if is_kept:
            maker.contents = stack.enter_context(source.contents())
        if is_shown:
            maker.show(stack)
        if encryption is None:
            with progress("copying files", None):
                hash_offset, superblock = maker.make(file)
        else:
            assert open_encrypted is not None
            hash_offset, superblock = _make_encrypted(file, maker, encryption, progress, open_encrypted)
        stack.close()
        sealed = seal(file, hash_offset, options.signing_key, progress, options.salt, maker.tree_uuid)
        file.commit()
    version = encryption.luks_version if encryption is not None else None
    return MadeImage(target, sealed.size, sealed.fssig, sealed.tree, superblock, version)


def check_directory(directory: Path, target: Path) -> None:
    """Raise UsageError unless an image can be made of ``directory``; ``target`` tells whether the two were meant the
    other way round."""
    if not directory.is_dir():
        why = "not a directory" if directory.exists() else "no such directory"
        swapped = f" (the directory comes first: {target} {directory})" if target.is_dir() else ""
        raise UsageError(f"{directory}: {why}{swapped}")


def _any_form(options: Mkext2Options) -> Format:
    """What decides about features, of an image that is not known yet."""
    any_uuid = uuid4()
    return Format(any_uuid, any_uuid, options.block_size, options.type, options.features, epoch=options.epoch)


def _identities(tree: SourceTree, epoch: int | None) -> tuple[UUID, UUID, UUID]:
    """File-system UUID, hash-tree UUID, and directory hash seed: random, or derived from the tree."""
    if epoch is None:
        return uuid4(), uuid4(), uuid4()

    def derived(what: bytes) -> UUID:
        digest = hashlib.sha256(b"mystfuse " + what + tree.digest).digest()
        return UUID(bytes=digest[:16], version=4)

    return derived(b"uuid"), derived(b"tree uuid"), derived(b"hash seed")


def _make_encrypted(
    file: AtomicFile, maker: _Maker, encryption: Encryption, progress: Progress, open_encrypted: OpenEncrypted
) -> tuple[int, Superblock]:
    """Make a LUKS header and an encrypted file system behind it; returns the size of both, and the superblock."""
    random: Random = secrets.token_bytes
    is_reproducible = maker.options.epoch is not None
    if is_reproducible:
        random = _reproducible_random(encryption, maker.tree.digest)
    try:
        header = make_luks_header(encryption, random, progress, is_reproducible)
        cipher = XtsCipher(encryption.master_key.view)
    finally:
        encryption.wipe()
    # In this order: progress has a thread, which must not exist during a fork.
    with open_encrypted(file, len(header), cipher) as plain, progress("copying files", None):
        size, superblock = maker.make(plain)
    with progress("encrypting free space", size) as advance:
        encrypt_zeros(file, len(header), size, cipher, advance)
    write_all(file.fd, header, 0)
    return len(header) + size, superblock


def _reproducible_random(encryption: Encryption, digest: bytes) -> Random:
    """Bytes derived from key and tree, new ones at each call."""
    calls = count()

    def random(length: int) -> bytes:
        stream = hashlib.shake_256(b"mystfuse luks" + next(calls).to_bytes(8, "big") + digest)
        stream.update(encryption.master_key.view)
        return stream.digest(length)

    return random


class _Maker:
    """Makes the file system: of the size that is wanted, by as many runs of mke2fs as that takes."""

    def __init__(self, source: TreeSource, tree: SourceTree, options: Mkext2Options, kind: Kind) -> None:
        self.tree = tree
        self.kind = kind
        self.options = options
        self.contents: Contents | None = None
        uuid, self.tree_uuid, hash_seed = _identities(tree, options.epoch)
        smallest = options.wishes.is_smallest
        block_size = self._block_size()
        self._form = Format(
            options.uuid or uuid,
            hash_seed,
            block_size,
            options.type,
            options.features,
            kind.has_journal,
            smallest,
            options.epoch,
            options.trace,
        )
        on_disk = "" if source.directory is None else os.fspath(source.directory.resolve())
        self._source = Source(on_disk, source.name)

    def _block_size(self) -> int | None:
        """None for mke2fs's choice; another for what it would choose too small a one for."""
        tree, wishes, given, kind = self.tree, self.options.wishes, self.options.block_size, self.kind
        size = least(tree, wishes, kind) if wishes.is_smallest else planned(tree, wishes, given, kind).size
        default = 1024 if size < SMALL_LIMIT else 4096
        chosen = choose_block_size(given, default, tree.needed_block, tree.largest_piece, tree.largest_file, kind)
        return chosen or (default if wishes.is_smallest else None)

    def show(self, stack: ExitStack) -> None:
        """Have mke2fs read the tree as it is in memory, until ``stack`` is closed."""
        from mystfuse.build.shown_tree import ShownTree

        assert self.tree.root is not None and self.contents is not None
        shown = stack.enter_context(ShownTree(self.tree.root, self.contents))
        self._source = replace(self._source, path=shown.path, server=shown.server)

    def make(self, file: WritableFile) -> tuple[int, Superblock]:
        """Make and fill the file system; returns its size in bytes, and its superblock."""
        size, superblock = self._make_smallest(file) if self._form.is_smallest else self._make_planned(file)
        stamp_inodes(
            file.fd,
            superblock,
            self._source.name,
            self.tree.top,
            self.tree.late_times,
            self.options.epoch,
            self.options.owner,
        )
        return size, superblock

    def _fill(self, file: WritableFile, plan: Plan) -> Superblock | None:
        """Run mke2fs once; None when the tree does not fit."""
        truncate(file, 0)
        truncate(file, plan.size)
        return read_superblock(file.fd) if fill(file, self._source, *plan, self._form) else None

    def _make_planned(self, file: WritableFile) -> tuple[int, Superblock]:
        wishes, tree = self.options.wishes, self.tree
        size, inodes = planned(tree, wishes, self._form.block_size, self.kind)
        for _ in range(_MAX_ATTEMPTS):
            superblock = self._fill(file, Plan(size, inodes))
            if superblock is not None:
                missing = wishes.free - superblock.block_size * max(
                    superblock.s_free_blocks_count - superblock.s_r_blocks_count, 0
                )
                if missing <= 0:
                    return size, superblock
            else:
                missing = size // 4
            size = round_up(size + int(missing / RESERVED), MIB)
            inodes = max(tree.inodes + tree.inodes // 4 + 64, inodes)
        raise MystfuseError(f"{self._source.name}: mke2fs cannot fit it into {size} bytes")

    def _make_smallest(self, file: WritableFile) -> tuple[int, Superblock]:
        wishes, block_size = self.options.wishes, self._form.block_size
        assert self.tree.root is not None and self.contents is not None and block_size is not None
        free = -(-wishes.free // block_size)
        inodes = max(needed_inodes(self.tree, self.kind) + wishes.free // inode_ratio(wishes.free), wishes.inodes)
        smallest = Smallest(self._form, inodes, self.kind)
        taken = count_blocks(self.tree.root, self.contents, block_size, self.kind)
        for _ in range(_MAX_ATTEMPTS):
            plan = smallest.find(taken + free)
            superblock = self._fill(file, plan)
            if superblock is None:
                # We have counted too few.
                taken += taken // 8 + 64
                continue
            before = smallest.free_blocks(plan.size)
            assert before is not None
            taken = before - superblock.s_free_blocks_count
            if smallest.find(taken + free).size == plan.size:
                return plan.size, superblock
        raise MystfuseError(f"{self._source.name}: mke2fs cannot fit it into {plan.size} bytes")
