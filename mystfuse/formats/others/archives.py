"""Archives and compressed files, by their first bytes; a tar archive of a container's image by the names in it.

Nothing is decompressed: that would run a decompressor over bytes that nobody vouches for.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mystfuse.formats.others.kind import MAKE_IMAGE, Kind, Sample, in_brackets

MAX_MEMBERS = 512
"""Members of a tar archive whose names are read."""
_UNPACK = "unpack it, and make an image of what is in it"
_MAKE = "make an image of what is in it"
_FROM_TAR = "mystfuse mkext2 --tar {file} {image}"
_DECOMPRESS = "decompress it"
_COMPRESSIONS = (
    ("gzip", b"\x1f\x8b\x08", "gzip -dc", (".gz", ".tgz"), "z", "gzip"),
    ("xz", b"\xfd7zXZ\0", "xz -dc", (".xz", ".txz"), "J", "xz"),
    ("zstd", b"\x28\xb5\x2f\xfd", "zstd -dc", (".zst", ".tzst"), " --zstd -", "zstd"),
    ("bzip2", b"BZh", "bzip2 -dc", (".bz2", ".tbz2", ".tbz"), "j", "bzip2"),
    ("lz4", b"\x04\x22\x4d\x18", "lz4 -dc", (".lz4",), " -I lz4 -", "LZ4"),
    ("lz4", b"\x02\x21\x4c\x18", "lz4 -dc", (".lz4",), " -I lz4 -", "LZ4 (legacy)"),
    ("lzip", b"LZIP", "lzip -dc", (".lz",), " --lzip -", "lzip"),
    ("lzop", b"\x89LZO\0\r\n\x1a\n", "lzop -dc", (".lzo",), " --lzop -", "lzop"),
    ("compress", b"\x1f\x9d", "gzip -dc", (".Z",), "Z", "compress"),
)
"""Name, magic, command, ends of names (the second and later ones of tar archives), tar's option, name for people.

Sources: RFC 1952, xz-file-format, RFC 8878, lz4_Frame_format.md; file(1)'s tables for the rest."""


def _tar_command(flag: str) -> str:
    return "mkdir tree && tar -x" + flag + "f {file} -C tree && " + MAKE_IMAGE


def compressed(sample: Sample) -> Kind | None:
    """A file that one program has compressed as a whole."""
    for name, magic, command, (suffix, *of_tar), flag, title in _COMPRESSIONS:
        if not sample.start.startswith(magic):
            continue
        if name == "bzip2" and not re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", sample.start):
            continue
        lower = sample.name.lower()
        if lower.endswith((f".tar{suffix.lower()}", *of_tar)):
            is_known = name in ("gzip", "xz", "zstd", "bzip2")
            return Kind(
                name,
                f"a tar archive, compressed with {title}",
                _MAKE if is_known else _UNPACK,
                (_FROM_TAR if is_known else _tar_command(flag),),
                suffix=next((end for end in (f".tar{suffix}", *of_tar) if sample.name.endswith(end)), ""),
            )
        return Kind(
            name,
            f"a file that is compressed with {title}",
            f"{_DECOMPRESS}, and see what that is",
            (f"{command} {{file}} > {{new}} && mystfuse info {{new}}",),
            suffix=suffix,
        )
    return None


def tar(sample: Sample) -> Kind | None:
    """POSIX.1-1988 and later (ustar, pax), GNU tar's manual, "Basic Tar Format"; the oldest format has no magic, but a
    checksum."""
    header = sample.start[:512]
    if not is_tar_header(header):
        return None
    if header[257:265] == b"ustar  \0":
        form = "GNU"
    elif header[257:262] == b"ustar":
        form = "pax" if header[156:157] in (b"x", b"g") else "ustar"
    else:
        form = "v7"
    names = _member_names(sample)
    container = _container(names)
    if container is not None:
        return container
    return Kind("tar", f"a tar archive{in_brackets(form)}", _MAKE, (_FROM_TAR,), {"version": form}, suffix=".tar")


def is_tar_header(header: bytes) -> bool:
    """Whether 512 bytes are a tar header: by the sum of its bytes, its own field counting as blanks."""
    field = header[148:156].strip(b" \0")
    if len(header) < 512 or not re.fullmatch(rb"[0-7]{1,7}", field):
        return False
    total = sum(header[:148]) + sum(header[156:512]) + 8 * ord(" ")
    return int(field, 8) == total and any(header[:148])


def _member_names(sample: Sample) -> list[bytes]:
    """The names of the first members; of an archive that is longer than the bounds, of these alone."""
    names: list[bytes] = []
    offset = 0
    while len(names) < MAX_MEMBERS:
        header = sample.at(offset, 512)
        if not is_tar_header(header):
            break
        names.append(header[:100].split(b"\0", 1)[0].removeprefix(b"./"))
        digits = header[124:136].strip(b" \0")
        if header[124] & 0x80:
            # GNU tar's sizes from 8 GiB on: base 256.
            size = int.from_bytes(header[125:136], "big")
        elif re.fullmatch(rb"[0-7]{1,12}", digits):
            size = int(digits, 8)
        else:
            break
        offset += 512 + -(-size // 512) * 512
    return names


def _container(names: list[bytes]) -> Kind | None:
    """OCI Image Format, image-layout.md: ``oci-layout`` and ``index.json``; docker save: ``manifest.json``."""
    found = set(names)
    is_oci = b"oci-layout" in found and b"index.json" in found
    # Besides the manifest there are layers; any archive may have a file of that name.
    is_docker = b"manifest.json" in found and any(
        name.startswith(b"blobs/sha256/") or name.endswith((b"/layer.tar", b".tar", b".json"))
        for name in found - {b"manifest.json"}
    )
    if not is_oci and not is_docker:
        return None
    scheme, title = ("oci-archive", "an OCI image archive") if is_oci else ("docker-archive", "a Docker image archive")
    return Kind(
        "oci" if is_oci else "docker",
        f"{title} (a container's layers in a tar archive)",
        "make an image of its layers",
        (f"mystfuse mkext2 {scheme}:{{file}} {{image}}",),
        suffix=".tar",
    )


def cpio(sample: Sample) -> Kind | None:
    """cpio(5): newc with or without checksum, odc, and the old binary form of either byte order."""
    forms = (
        (b"070701", "newc"),
        (b"070702", "newc with checksums"),
        (b"070707", "odc"),
        (b"\xc7\x71", "binary"),
        (b"\x71\xc7", "binary"),
    )
    for magic, form in forms:
        if sample.start.startswith(magic) and (
            form == "binary" or re.fullmatch(rb"[0-9A-Fa-f]{6,}", sample.start[:32])
        ):
            return Kind(
                "cpio",
                f"a cpio archive{in_brackets(form)}",
                _UNPACK,
                (f"mkdir tree && cpio -idm --no-absolute-filenames -D tree < {{file}} && {MAKE_IMAGE}",),
                {"version": form},
                suffix=".cpio",
            )
    return None


def others(sample: Sample) -> Kind | None:
    """PKWARE's APPNOTE.TXT, 7zFormat.txt, deb(5), rpm's lead; RAR as file(1) knows it."""
    start = sample.start
    if start[:4] in (b"PK\3\4", b"PK\5\6", b"PK\7\x08"):
        return Kind("zip", "a zip archive", _UNPACK, (f"unzip -q {{file}} -d tree && {MAKE_IMAGE}",), suffix=".zip")
    if start[:6] == b"7z\xbc\xaf\x27\x1c":
        return Kind("7z", "a 7z archive", _UNPACK, (f"7z x -otree {{file}} && {MAKE_IMAGE}",), suffix=".7z")
    if start[:6] == b"Rar!\x1a\x07":
        return Kind("rar", "a RAR archive", _UNPACK, (f"unrar x {{file}} tree/ && {MAKE_IMAGE}",), suffix=".rar")
    if start[:8] == b"!<arch>\n":
        if start[8:21] == b"debian-binary":
            return Kind(
                "deb", "a Debian package", _UNPACK, (f"dpkg-deb -x {{file}} tree && {MAKE_IMAGE}",), suffix=".deb"
            )
        return Kind(
            "ar",
            "an ar archive, as of a static library",
            _UNPACK,
            (f"mkdir tree && ar x --output tree {{file}} && {MAKE_IMAGE}",),
            suffix=".a",
        )
    if start[:4] == b"\xed\xab\xee\xdb":
        return Kind(
            "rpm",
            "an RPM package",
            _UNPACK,
            (f"mkdir tree && rpm2cpio {{file}} | cpio -idm --no-absolute-filenames -D tree && {MAKE_IMAGE}",),
            suffix=".rpm",
        )
    return None


RECOGNIZERS: tuple[Callable[[Sample], Kind | None], ...] = (compressed, cpio, tar, others)
