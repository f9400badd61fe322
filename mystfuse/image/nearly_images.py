"""Images, and what could be one: images that lack something, file systems of the ext family, LUKS containers.

The verity superblock of an image without a signature block is looked for where arithmetic puts it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mystfuse.errors import FormatError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.summary import FileSystemSummary
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig, has_fssig_magic
from mystfuse.formats.luks_magic import LUKS2_SECOND_MAGIC, LUKS_MAGIC
from mystfuse.formats.others import filesystems
from mystfuse.formats.others.kind import Facts, Kind, Sample, facts_of, in_brackets
from mystfuse.formats.verity import VERITY_SIGNATURE, VERITY_SUPERBLOCK_SIZE, VOUCHER, TreeGeometry, VeritySuperblock
from mystfuse.system.units import describe_bytes

if TYPE_CHECKING:
    from mystfuse.formats.luks_summary import LuksSummary

_BLOCK = 4096
"""Bytes of data and hash blocks, as we and, by default, veritysetup make them."""
_SECOND = (0x4000, 0x8000, 0x10000)
"""Where LUKS2's second header can be, among the first bytes of a file: it may be there without the first."""
_GET_AGAIN = "get the file again"
_HASH_IT = (
    "veritysetup format {options}{{file}} {{file}}.verity --root-hash-file={{file}}.roothash && "
    "mystfuse verify --hash-device={{file}}.verity --roothash={{file}}.roothash {{file}}"
)


def _image(sample: Sample) -> Kind | None:
    """An image, by the fssig at its end and the hash tree that it names."""
    fssig = _fssig_of(sample)
    if not isinstance(fssig, Fssig):
        return None
    words = ["signed" if fssig.is_signed else "unsigned", describe_bytes(sample.size)]
    if _luks_of(sample) is not None:
        words.insert(1, "encrypted")
    return Kind(
        "image",
        f"an image{in_brackets(*words)}",
        "mystfuse info describes it",
        ("mystfuse info {file}",),
        facts_of(hash_offset=fssig.hash_offset),
        is_image=True,
    )


def _fssig_of(sample: Sample) -> Fssig | FormatError | None:
    """The fssig at the end of a file, if a hash tree is where it says; what is wrong with it, if none is. None: there
    is no fssig."""
    end = sample.end[-FSSIG_SIZE:]
    if len(end) < FSSIG_SIZE or not has_fssig_magic(end):
        return None
    try:
        fssig = Fssig.parse(end)
        superblock = VeritySuperblock.parse(sample.at(fssig.hash_offset, VERITY_SUPERBLOCK_SIZE))
        if superblock.data_size != fssig.hash_offset:
            raise FormatError("its hash tree covers something else than what is in front of it")
        TreeGeometry.of(superblock, fssig.hash_offset).check_fits(sample.size - FSSIG_SIZE)
    except FormatError as error:
        return error
    return fssig


def damaged_image(sample: Sample) -> Kind | None:
    """An image whose hash tree is not where its fssig says. Other formats may end with an fssig, too, as what they pack
    does: they are to be asked before."""
    fault = _fssig_of(sample)
    if not isinstance(fault, FormatError):
        return None
    title = f"an image that is damaged, or whose middle is missing ({fault})"
    return Kind("image", title, _GET_AGAIN, is_image=True)


def _damaged_image_by_start(sample: Sample) -> Kind | None:
    superblock = sample.start[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE]
    begins_like_one = FileSystemSummary.parse(superblock) is not None or _luks_of(sample) is not None
    return damaged_image(sample) if begins_like_one else None


def _hash_tree_alone(sample: Sample) -> Kind | None:
    if not sample.start.startswith(VERITY_SIGNATURE):
        return None
    return Kind(
        "verity-hash",
        "the hash tree of dm-verity, without the data that it covers",
        "give it with them",
        ("mystfuse verify --hash-device={file} --roothash=HEX DATA",),
    )


def _luks_of(sample: Sample) -> LuksSummary | None:
    if not sample.start.startswith(LUKS_MAGIC) and all(
        sample.start[at : at + 6] != LUKS2_SECOND_MAGIC for at in _SECOND
    ):
        return None
    # Only here: importing the LUKS parsers takes 15 ms.
    from mystfuse.formats.luks_summary import describe_luks, header_bytes

    needed = header_bytes(sample.start[:4096])
    return describe_luks(sample.at(0, needed) if needed > len(sample.start) else sample.start)


def _luks(sample: Sample) -> Kind | None:
    luks = _luks_of(sample)
    if luks is None:
        return None
    facts = facts_of(
        version=str(luks.version),
        uuid=luks.uuid,
        label=luks.label,
        cipher=luks.cipher,
        payload_offset=luks.payload_offset or 0,
        key_slots=tuple(f"{slot.number}: {slot.kdf}" for slot in luks.slots),
    )
    slots = f"{len(luks.slots)} key slot{'s' * (len(luks.slots) != 1)}"
    words = in_brackets(luks.cipher, slots)
    if luks.is_detached(sample.size):
        if luks.payload_offset:
            return Kind(
                "luks",
                f"a truncated LUKS{luks.version} container{words}, of which no data are left",
                _GET_AGAIN,
                facts=facts,
            )
        return Kind(
            "luks-header",
            f"a detached LUKS{luks.version} header{words}: the encrypted data are elsewhere",
            "mystfuse opens what has header and data in one file; as root the kernel opens such",
            ("cryptsetup open --readonly --header {file} DATA NAME",),
            facts,
        )
    found = _find_tree(sample, None)
    what = f"a LUKS{luks.version} container{words}"
    if found is not None:
        return _with_tree(sample, what, found, facts)
    if luks.fault is not None:
        return Kind(
            "luks",
            f"{what} that mystfuse does not open ({luks.fault})",
            "open it as root, and make an image of what is in it",
            (
                "cryptsetup open --readonly {file} NAME && mount -o ro /dev/mapper/NAME DIRECTORY && "
                "mystfuse mkext2 --encrypt KEYFILE DIRECTORY {image}",
            ),
            facts,
        )
    return Kind("luks", f"{what} without a hash tree, or one whose end is missing", *_make_tree(sample), facts)


def _ext(sample: Sample) -> Kind | None:
    found = FileSystemSummary.parse(sample.start[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE])
    if found is None:
        return None
    facts = facts_of(
        label=found.label,
        uuid=found.uuid,
        bytes=found.size,
        block_size=found.block_size,
        features=found.features,
        missing_features=found.unsupported,
    )
    if found.type == "jbd":
        return Kind("jbd", "an external journal of ext3 or ext4", "it holds no files", facts=facts)
    name = found.type.upper() if found.type == "ext2" else found.type
    words = in_brackets(found.label and f"label {found.label}", describe_bytes(found.size))
    what = f"an {name} file system{words}"
    if found.size > sample.size:
        missing = found.size - sample.size
        return Kind(
            found.type, f"{what}, truncated: at least {missing} bytes are missing at its end", _GET_AGAIN, facts=facts
        )
    tree = _find_tree(sample, found.size)
    if tree is not None:
        return _with_tree(sample, what, tree, facts)
    if found.fault is not None:
        lacks = f"uses {', '.join(found.unsupported)}, which mystfuse lacks" if found.unsupported else found.fault
        return Kind(
            found.type,
            f"{what} that {lacks}" if found.unsupported else f"{what} that is broken ({lacks})",
            filesystems.AS_ROOT,
            (filesystems.LOOP_MOUNT,),
            facts,
        )
    if found.needs_recovery:
        what += " whose journal has changes that are not in it yet,"
    return Kind(found.type, f"{what} without a hash tree and signature block (fssig)", *_make_tree(sample), facts)


def _make_tree(sample: Sample) -> tuple[str, tuple[str, ...]]:
    """Advice and command for a file that mystfuse reads, but for its having no hash tree."""
    # veritysetup leaves out what is not a whole block.
    size = sample.size & -sample.size
    options = "" if size >= _BLOCK else f"--data-block-size={max(size, 512)} "
    return "make it one, whose root hash you trust then", (_HASH_IT.format(options=options),)


def _find_tree(sample: Sample, size: int | None) -> tuple[int, VeritySuperblock] | None:
    """A hash tree behind the data of a file without an fssig at its end: where its superblock is, and that.

    It is looked for behind the file system, whose size is known, and where a tree must begin to end with the file.

    Args:
        size: bytes of the file system; None: unknown.
    """
    places = [] if size is None else [size, -(-size // _BLOCK) * _BLOCK]
    for offset in dict.fromkeys([*places, *_places_of_trees(sample.size)]):
        data = sample.at(offset, VERITY_SUPERBLOCK_SIZE)
        if not data.startswith(VERITY_SIGNATURE):
            continue
        try:
            superblock = VeritySuperblock.parse(data)
        except FormatError:
            continue
        if superblock.data_size <= offset:
            return offset, superblock
    return None


def _places_of_trees(size: int) -> list[int]:
    """Where the superblock of a tree with usual blocks and sha256 is, if file and tree end together, or an fssig is
    between them."""
    places: list[int] = []
    for end in (size, size - FSSIG_SIZE):
        total = end // _BLOCK
        low, high = 1, total
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if _blocks_with_tree(middle) <= total else (low, middle - 1)
        if total > 1 and _blocks_with_tree(low) == total:
            places.append(low * _BLOCK)
    return places


def _blocks_with_tree(data_blocks: int) -> int:
    """How many blocks these, their superblock and their hash blocks are."""
    total, level = data_blocks + 1, data_blocks
    while level > 1:
        level = -(-level // (_BLOCK // 32))
        total += level
    return total


def _with_tree(sample: Sample, what: str, found: tuple[int, VeritySuperblock], facts: Facts) -> Kind:
    """An image without an fssig at its end: cut off, lengthened, or made by veritysetup."""
    offset, superblock = found
    end = TreeGeometry.of(superblock, offset).end
    whole = end + FSSIG_SIZE
    kind = partial(Kind, facts={**facts, "hash_offset": offset}, is_image=True)
    if end > sample.size:
        missing = f"at least {end - sample.size} bytes are missing at its end"
        return kind("truncated-image", f"{what} with a hash tree that is truncated: {missing}", _GET_AGAIN)
    if has_fssig_magic(sample.at(end, 8)):
        if whole > sample.size:
            missing = f"{whole - sample.size} bytes are missing at its end"
            return kind("truncated-image", f"a truncated image: {missing}", _GET_AGAIN)
        take = f"head -c {whole} {{file}} > {{new}} && mystfuse info {{new}}"
        more = f"{sample.size - whole} bytes more behind its end"
        return kind("padded-image", f"an image with {more}", "take the image alone", (take,))
    give = f"mystfuse verify --hash-offset={offset} --roothash=HEX {{file}}"
    if superblock.salt.startswith(VOUCHER):
        missing = f"the signature block (fssig), its last {FSSIG_SIZE} bytes, is missing"
        advice = f"{_GET_AGAIN}; or give its root hash, if you have it"
        return kind("truncated-image", f"a truncated image: {missing}", advice, (give,))
    return kind(
        "verity-image",
        f"{what} with a hash tree of veritysetup's at byte {offset}, and no signature block (fssig)",
        "give place and root hash of the tree (veritysetup format printed it)",
        (give,),
    )


RECOGNIZERS: tuple[Callable[[Sample], Kind | None], ...] = (
    _image,
    _hash_tree_alone,
    _damaged_image_by_start,
    _luks,
    _ext,
)
