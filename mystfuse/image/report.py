"""Everything about an image that can be told without reading all of it: parts, file system, encryption, signer, trust.

The decision about trust is a mount's own (``open.open_image``), and what the image holds is read behind its hash tree,
by the devices of a mount. What could not be is marked as unverified.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from mystfuse.devices.device import Device, Extent
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.patience import PatientSource
from mystfuse.devices.source import Source
from mystfuse.errors import FormatError, IntegrityError, MystfuseError, NotTrusted, UsageError, innermost
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.summary import FileSystemSummary
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.others.kind import Kind
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, TreeGeometry, VeritySuperblock
from mystfuse.image.first_bytes import FIRST_BYTES, is_luks
from mystfuse.image.identify import identify
from mystfuse.image.keys import Keys
from mystfuse.image.open import HashTree, TrustedImage, open_image
from mystfuse.image.pipeline import open_contents, run_verity
from mystfuse.image.progress import Progress
from mystfuse.trust.policy import Trust, TrustPolicy
from mystfuse.trust.sources import TrustOptions

if TYPE_CHECKING:
    from mystfuse.formats.luks_summary import LuksSummary
    from mystfuse.trust.signature import PublicKey

_DESCRIBED = ("ext2", "ext3", "ext4", "luks", "luks-header")
"""Kinds of files, besides images, whose superblock or LUKS header is described."""


class CheckedBy(Enum):
    """What the bytes that a report is about were compared with."""

    TRUSTED_ROOT_HASH = "trusted root hash"
    """One that the policy trusts, or that a trusted signer has signed."""
    OWN_ROOT_HASH = "own root hash"
    """The image's own: it is whole, but nobody vouches for it."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file."""

    what: str
    offset: int
    """Bytes from the beginning."""
    size: int
    """Bytes."""
    file: str | None = None
    """The file that it is in, if that is another one."""


@dataclass(slots=True)
class Report:
    """What is known about a file."""

    name: str
    size: int | None
    """Bytes; None of what is no file."""
    kind: Kind
    fssig: Fssig | None = None
    hash_offset: int | None = None
    """Where the verity superblock is, in bytes: as the fssig or the options say, or found."""
    tree: HashTree | None = None
    trust: Trust | None = None
    """Why a mount would accept it; None: it would not."""
    refusal: str | None = None
    """Why a mount would not."""
    signer_key: PublicKey | None = None
    """The key among the trusted ones that the image names as its signer."""
    signature_is_right: bool | None = None
    """Whether the signature is that key's; None if there is no such key."""
    luks: LuksSummary | None = None
    file_system: FileSystemSummary | None = None
    """None while it is encrypted, or where there is none."""
    is_decrypted: bool = False
    """Whether ``file_system`` was read with a key."""
    checked_by: CheckedBy = CheckedBy.NOTHING
    """Of ``file_system`` and ``luks``."""
    regions: list[Region] = field(default_factory=list)
    opened: TrustedImage | None = None
    """None if it cannot be opened at all."""
    error: MystfuseError | None = None
    """Why a mount fails, trust aside; None if nothing speaks against it."""

    @property
    def is_image(self) -> bool:
        """Whether it is an image, or lacks little to be one: then ``kind`` says what it lacks."""
        return self.kind.is_image or (self.trust is not None and self.error is None)

    @property
    def needs_key(self) -> bool:
        """Whether opening it needs a passphrase or a master key."""
        return self.luks is not None

    @property
    def takes_passphrase(self) -> bool:
        """Whether a key slot is there for a passphrase."""
        return self.luks is not None and any(slot.priority and slot.seconds is not None for slot in self.luks.slots)


def examine(source: Source, trust: TrustOptions) -> Report:
    """Find out everything about an image that stands outside its hash tree, or what else a file is. Errors of the image
    are part of the report. ``complete`` does the rest.

    Args:
        source: read without an event loop, and in ``complete`` with one: a ``PatientSource``, where storage may hang.

    Raises:
        ImageReadError: reading it failed; StorageTimeout when storage does not answer.
        UsageError: the options do not fit the image.
    """
    joined = _joined(source)
    report = Report(source.name, joined.data_size if joined else source.size, _kind_of(source, trust))
    report.opened = _open(source, trust, report)
    _note_signer(report, trust.policy)
    if report.opened is None:
        _look_at(source, report)
    report.regions = _regions(report, joined)
    return report


async def complete(report: Report, keys: Keys, io_timeout: float, progress: Progress) -> None:
    """Describe what an image holds, read as a mount reads it: LUKS header and file system.

    Args:
        keys: wiped in every case; without one, an encrypted image is described as far as its header goes.
        progress: shown while a passphrase is tried.
    """
    image = report.opened
    try:
        if image is not None:
            await _look_behind_tree(image, report, keys, io_timeout, progress)
            report.regions = _regions(report, _joined(image.source))
    finally:
        keys.wipe()
        await keys.end_deriver()


def _joined(source: Source) -> JoinedSource | None:
    """The source itself, where it is made of two files."""
    inner = source.source if isinstance(source, PatientSource) else source
    return inner if isinstance(inner, JoinedSource) else None


def _kind_of(source: Source, trust: TrustOptions) -> Kind:
    if trust.hash_offset is None:
        return identify(source)
    title = "an image with a hash tree of veritysetup's"
    return Kind("verity-image", title, facts={"hash_offset": trust.hash_offset}, is_image=True)


def _open(source: Source, trust: TrustOptions, report: Report) -> TrustedImage | None:
    """Open it as a mount would, for its own root hash if it is not trusted; None if it is no image."""
    found = report.kind.facts.get("hash_offset")
    report.hash_offset = found if isinstance(found, int) else None
    if trust.hash_offset is None and source.size >= FSSIG_SIZE:
        # What is wrong with it, open_image says.
        with suppress(FormatError):
            report.fssig = Fssig.parse(source.read(source.size - FSSIG_SIZE, FSSIG_SIZE))
            report.hash_offset = report.fssig.hash_offset
    try:
        try:
            opened = open_image(source, trust.policy, trust.hash_offset, trust.root_hash)
            report.trust = opened.trust
        except NotTrusted as error:
            report.refusal = str(error)
            opened = open_image(source, TrustPolicy(trust_self=True))
    except FormatError as error:
        report.error = error
        return None
    report.tree = opened.tree
    return opened


def _note_signer(report: Report, policy: TrustPolicy) -> None:
    """Look for the signer among the trusted keys, and check the signature with each that could be it."""
    fssig = report.fssig
    if fssig is None or not fssig.is_signed:
        return
    for key in policy.public_keys:
        if key.signer == fssig.signer and not report.signature_is_right:
            report.signer_key = key
            report.signature_is_right = key.verifies(fssig.root_hash, fssig.signature)


async def _look_behind_tree(
    image: TrustedImage, report: Report, keys: Keys, io_timeout: float, progress: Progress
) -> None:
    """Describe what an image holds, read as a mount reads it."""
    if image.tree is not None:
        is_vouched_for = report.trust is not None and report.trust.is_vouched_for
        report.checked_by = CheckedBy.TRUSTED_ROOT_HASH if is_vouched_for else CheckedBy.OWN_ROOT_HASH
    try:
        async with run_verity(image, io_timeout) as (reader, verity):
            device: Device = verity or reader
            try:
                await _describe(device, report)
            except IntegrityError as error:
                report.error = error
                report.checked_by = CheckedBy.NOTHING
                await _describe(reader, report)
                return
            unlocked = await open_contents(device, verity is not None, keys, progress, may_stay_locked=True)
            if unlocked is not None:
                report.is_decrypted = True
                await _describe(unlocked.device, report)
    except BaseExceptionGroup as group:
        cause = innermost(group)
        if not isinstance(cause, MystfuseError) or isinstance(cause, UsageError):
            raise cause from None
        report.error = cause


def _look_at(source: Source, report: Report) -> None:
    """Describe what cannot be opened, from its unverified bytes, if it is nearly an image."""
    if not report.kind.is_image and report.kind.name not in _DESCRIBED:
        return
    first = source.read(0, min(FIRST_BYTES, source.size))
    if is_luks(first):
        from mystfuse.formats.luks_summary import describe_luks, header_bytes

        report.luks = describe_luks(source.read(0, min(header_bytes(first), source.size)))
    else:
        report.file_system = FileSystemSummary.parse(first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE])
    hash_offset = report.hash_offset
    if hash_offset is not None and 0 < hash_offset <= source.size - VERITY_SUPERBLOCK_SIZE:
        try:
            superblock = VeritySuperblock.parse(source.read(hash_offset, VERITY_SUPERBLOCK_SIZE))
        except FormatError:
            return
        report.tree = HashTree(superblock, TreeGeometry.of(superblock, hash_offset))


async def _describe(device: Device, report: Report) -> None:
    """Describe the LUKS header or the file system that a device begins with."""

    async def read(length: int) -> bytes:
        # Quietly: damage goes into the report.
        (data,) = await device.read([Extent(0, min(length, device.size))], quietly=True)
        return bytes(data)

    first = await read(FIRST_BYTES)
    if not report.is_decrypted:
        # Only here: importing the LUKS parsers takes 15 ms. A second header may be there without the first.
        file_system = FileSystemSummary.parse(first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE])
        if is_luks(first) or file_system is None:
            from mystfuse.formats.luks_summary import describe_luks, header_bytes

            report.luks = describe_luks(await read(header_bytes(first)))
        report.file_system = file_system if report.luks is None else None
        return
    report.file_system = FileSystemSummary.parse(first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE])


def _regions(report: Report, joined: JoinedSource | None) -> list[Region]:
    """The parts of the file, in their order; what lies between them is padding."""
    found: list[Region] = []
    size = end = report.size or 0
    if report.hash_offset is not None and joined is None:
        end = min(end, report.hash_offset)
    if report.luks is not None:
        payload = min(report.luks.payload_offset or end, end)
        found += [Region("LUKS header", 0, payload), Region("encrypted file system", payload, end - payload)]
    elif report.file_system is not None:
        used = min(report.file_system.size, end)
        found += [Region(f"{report.file_system.type} file system", 0, used), Region("not used by it", used, end - used)]
    elif report.kind.is_image:
        found += [Region("data", 0, end)]
    if report.tree is not None and report.hash_offset is not None:
        levels, block = report.tree.geometry.levels, report.tree.superblock.hash_block_size
        of_tree = [Region("verity superblock", report.hash_offset, VERITY_SUPERBLOCK_SIZE)]
        if levels:
            of_tree.append(Region("hash tree", levels[-1].offset, sum(level.blocks for level in levels) * block))
        found += of_tree if joined is None else [place for region in of_tree for place in _placed(region, joined)]
    if report.fssig is not None:
        found.append(Region("signature block (fssig)", size - FSSIG_SIZE, FSSIG_SIZE))
    return [region for region in found if region.size]


def _placed(region: Region, joined: JoinedSource) -> list[Region]:
    """A region of the hash tree where it is in its own file; nothing for a superblock that only the options make."""
    place = joined.place(region.offset)
    return [] if place is None else [Region(region.what, place[1], region.size, place[0])]
