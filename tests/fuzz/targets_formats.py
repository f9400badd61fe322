"""Targets: everything around the file system. fssig, verity superblock, LUKS headers, packages, keys, and words of the
command line."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.commands.mount_mystfuse import _Call, _options_for_us
from mystfuse.cli.container import ContainerMount
from mystfuse.cli.mount_options import OPTION_NAMES, parse_mount_options
from mystfuse.cli.options import parse_id, parse_seconds, parse_size
from mystfuse.errors import FormatError, MountError, MystfuseError, NotTrusted, UsageError, one_line
from mystfuse.formats.configuration import Configuration, parse_json_object
from mystfuse.formats.fssig import Fssig
from mystfuse.formats.luks import MAX_ITERATIONS, Argon2, CipherSpec, KeyDigest, Keyslot, LuksHeader, Pbkdf2
from mystfuse.formats.luks1 import keyslot_offset, pack_luks1, parse_luks1
from mystfuse.formats.luks2 import BINARY_HEADER_SIZE, HeaderCopy, pack_luks2, parse_luks2
from mystfuse.formats.package import PackageContents, PackageFile
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.trust.package import open_package, sign_package
from mystfuse.trust.policy import TrustPolicy, TrustReason, decide
from mystfuse.trust.signature import PublicKey, SigningKey
from mystfuse.trust.trust_directory import hex_digest
from tests.fuzz.harness import Choices, Target, ensure

DATA = Path(__file__).parents[1] / "data"
KEY_PEM = (Path(__file__).parent / "signer.pem").read_bytes()
"""A private key for tests alone: it signs the targets' inputs."""


@cache
def signer() -> SigningKey:
    return SigningKey.from_pem(KEY_PEM, "signer.pem")


@cache
def public_key() -> PublicKey:
    return PublicKey.from_der(signer().public_der(), "signer")


def one_line_of(error: Exception) -> None:
    """A message to the user is one line, and not empty."""
    message = one_line(error.message if isinstance(error, click.BadParameter) else str(error))
    ensure(bool(message) and message.isprintable(), f"{type(error).__name__} says {message!r}")


# -- fssig


@cache
def signed_fssig() -> Fssig:
    root = hashlib.sha256(b"root").digest()
    return Fssig(8 << 20, root, signer().signer, signer().sign(root))


def fssig(data: bytes) -> None:
    """An fssig reads back as written, and only the signer of this root hash is trusted."""
    try:
        parsed = Fssig.parse(data.ljust(4096, b"\0") if len(data) > 7 else data)
    except FormatError as error:
        one_line_of(error)
        return
    ensure(0 < parsed.hash_offset < 1 << 63 and len(parsed.signature) <= 1024, "a field is out of bounds")
    packed = parsed.pack()
    ensure(packed[:88] == data[:88].ljust(88, b"\0"), "fields are not written as they were read")
    ensure(Fssig.parse(packed) == parsed, "what is written is not read back")
    json.dumps(parsed.fields())
    good = signed_fssig()
    try:
        trust = decide(parsed, TrustPolicy(public_keys=(public_key(),)))
    except NotTrusted as error:
        one_line_of(error)
        return
    ensure(trust.reason is TrustReason.SIGNATURE, f"trusted because of {trust.reason}")
    ensure(
        (parsed.root_hash, parsed.signer, parsed.signature) == (good.root_hash, good.signer, good.signature),
        "something is trusted that nobody signed",
    )


def fssig_seeds() -> list[bytes]:
    unsigned = Fssig(1 << 20, bytes(range(32)))
    return [signed_fssig().pack()[:1120], unsigned.pack()[:1120]]


# -- verity


def verity(data: bytes) -> None:
    """A superblock reads back as written; the levels of its tree follow one another and have the right sizes."""
    choices = Choices(data)
    hash_offset = choices.number(8) >> 1
    try:
        superblock = VeritySuperblock.parse(choices.rest())
    except FormatError as error:
        one_line_of(error)
        return
    ensure(VeritySuperblock.parse(superblock.pack()) == superblock, "what is written is not read back")
    geometry = TreeGeometry.of(superblock, hash_offset)
    ensure(len(geometry.levels) <= 63, f"{len(geometry.levels)} levels")
    size, position, hashed = superblock.hash_block_size, geometry.end, superblock.data_blocks
    for level in geometry.levels:
        ensure((level.blocks - 1) * geometry.digests_per_block < hashed <= level.blocks * geometry.digests_per_block,
               "a level has not as many blocks as it must have")  # fmt: skip
        position -= level.blocks * size
        ensure(level.offset == position and position % size == 0, "a level is not where it must be")
        hashed = level.blocks
    ensure(hashed == 1, "the top of the tree is not one block")
    ensure(hash_offset + 512 <= position < hash_offset + 512 + size, "the tree does not begin behind the superblock")
    with suppress(FormatError):
        geometry.check_fits(choices.number(8))


def verity_seeds() -> list[bytes]:
    superblocks = [
        VeritySuperblock(2048, bytes(32), bytes(16)),
        VeritySuperblock(1, b"", bytes(16), algorithm="sha512", data_block_size=512, hash_block_size=512),
        VeritySuperblock(1 << 40, bytes(256), bytes(16), hash_type=0, hash_block_size=1 << 19),
    ]
    return [(superblock.data_size << 1).to_bytes(16, "little")[:8] + superblock.pack() for superblock in superblocks]


# -- LUKS


def check_header(header: LuksHeader) -> None:
    """What holds for every accepted header."""
    ensure(header.payload_offset > 0 and header.sector_size in (512, 1024, 2048, 4096), "an impossible payload")
    ensure(set(header.key_sizes) <= set(header.cipher.key_sizes), "an impossible key")
    ensure(len(header.keyslots) <= 32, f"{len(header.keyslots)} key slots")
    derivations: list[tuple[Pbkdf2 | Argon2, int]] = [(header.digest.kdf, len(header.digest.digest))]
    derivations += [(slot.kdf, slot.cipher_key_size) for slot in header.keyslots]
    for kdf, length in derivations:
        ensure(length <= 64, f"{length} bytes to be derived")
        if isinstance(kdf, Pbkdf2):
            ensure(0 < kdf.iterations <= MAX_ITERATIONS, f"{kdf.iterations} iterations")
        else:
            ensure(kdf.memory * kdf.time <= 64 << 20, "a derivation that takes for ever")
    for slot in header.keyslots:
        ensure(slot.material_size <= 64 << 16, f"{slot.material_size} bytes of key material")
        ensure(0 < slot.offset <= header.payload_offset - slot.material_size, "key material in the payload")
    str(header.cipher), [str(slot.kdf) for slot in header.keyslots]
    for size in (0, 1, 4096, 1 << 20, 1 << 40, 1 << 63):
        with suppress(FormatError):
            payload = header.check_fits(size)
            ensure(0 < payload <= size - header.payload_offset, f"a payload of {payload} in {size} bytes")


def luks1(data: bytes) -> None:
    """A header is refused or within bounds, and stays the same when its slots are where cryptsetup puts them."""
    try:
        header = parse_luks1(data)
    except FormatError as error:
        one_line_of(error)
        return
    check_header(header)
    slots = tuple(
        replace(slot, offset=keyslot_offset(slot.number, slot.key_size), stripes=min(slot.stripes, 4000))
        for slot in header.keyslots
    )
    header = replace(header, keyslots=slots)
    if len(header.uuid) <= 40 and header.uuid.isascii() and "\0" not in header.uuid:
        with suppress(FormatError):
            read = parse_luks1(pack_luks1(header))
            ensure(read == header, "what is written is not read back")


def luks1_seeds() -> list[bytes]:
    with lzma.open(DATA / "luks-1024.img.xz") as image:
        golden = image.read(592)
    cipher = CipherSpec.parse("aes-cbc-essiv:sha256")
    kdf = Pbkdf2("sha512", bytes(32), 1000)
    slots = tuple(Keyslot(n, kdf, 32, cipher, 32, keyslot_offset(n, 32), 4000, "sha512") for n in range(8))
    header = LuksHeader(1, "u" * 36, cipher, (32,), 2 << 20, None, 512, 0, slots, KeyDigest(kdf, bytes(20)))
    return [golden, pack_luks1(header)]


def luks2(data: bytes) -> None:
    """If the first byte is odd, the rest is the binary header; else it is the JSON area of a good one."""
    if data[:1] and data[0] & 1:
        offset = data[0] >> 1 << 14
        copy = HeaderCopy.parse(data[1:], offset)
        if copy is not None:
            ensure(copy.size <= 4 << 20 and copy.offset == offset, "an impossible header")
            with suppress(FormatError):
                copy.check(data[1:].ljust(copy.size, b"\0"))
        return
    copy = HeaderCopy(0, 0x4000, 1, "uuid", "sha256")
    try:
        header = parse_luks2(copy, copy.document(bytes(BINARY_HEADER_SIZE) + data[1:]))
    except FormatError as error:
        one_line_of(error)
        return
    check_header(header)
    is_ours = header.keyslots and all(isinstance(slot.kdf, Argon2) and slot.priority == 1 for slot in header.keyslots)
    if is_ours and all(slot.material_size < 1 << 24 for slot in header.keyslots):
        with suppress(ValueError):
            packed = pack_luks2(header, 1, (bytes(64), bytes(64)))
            again = HeaderCopy.parse(packed, 0)
            assert again is not None
            again.check(packed[: again.size])
            read = parse_luks2(again, again.document(packed[: again.size]))
            ensure(replace(read, uuid=header.uuid, unusable=header.unusable) == header, "not read back as written")


def luks2_seeds() -> list[bytes]:
    cipher = CipherSpec.parse("aes-xts-plain64")
    kdf = Argon2("argon2id", bytes(32), 4, 1024, 4)
    digest = KeyDigest(Pbkdf2("sha256", bytes(32), 1000), bytes(32))
    slot = Keyslot(0, kdf, 64, cipher, 64, 32768, 4000, "sha256")
    header = LuksHeader(2, "u" * 36, cipher, (64,), 16 << 20, None, 4096, 0, (slot,), digest)
    packed = pack_luks2(header, 3, (bytes(64), bytes(64)))
    document = json.loads(packed[4096:16384].rstrip(b"\0"))
    seeds = [b"\1" + packed[:512], b"\3" + packed[16384 : 16384 + 512], b"\0" + json.dumps(document).encode()]
    document["keyslots"]["0"]["kdf"] = {"type": "pbkdf2", "hash": "sha1", "iterations": 5, "salt": "AAAA"}
    document["keyslots"]["0"]["priority"] = 2
    document["segments"]["0"]["size"] = "1048576"
    document["config"]["requirements"] = {"mandatory": []}
    return [*seeds, b"\0" + json.dumps(document).encode()]


LUKS2_WORDS = [
    b'"keyslots"', b'"tokens"', b'"segments"', b'"digests"', b'"config"', b'"requirements"', b'"mandatory"', b'"type"',
    b'"luks2"', b'"crypt"', b'"linear"', b'"integrity"', b'"offset"', b'"size"', b'"dynamic"', b'"iv_tweak"',
    b'"encryption"', b'"aes-xts-plain64"', b'"aes-cbc-essiv:sha256"', b'"sector_size"', b'"pbkdf2"', b'"argon2i"',
    b'"hash"', b'"sha1"', b'"iterations"', b'"salt"', b'"digest"', b'"area"', b'"raw"', b'"af"', b'"stripes"', b'"kdf"',
    b'"priority"', b'"key_size"', b'"time"', b'"memory"', b'"cpus"', b"true", b"null", b"1e999", b"NaN", b"-1",
    b"9223372036854775808", b'"9223372036854775807"', b'"\\ud800"', b"[[[[[[[[", b"{}", b"[]", b'"0"', b'"31"',
]  # fmt: skip


# -- packages

CONFIGURATION: dict[str, Any] = {
    "version": "0.1",
    "Debug": 0,
    "ProductID": 1,
    "ApplicationPath": "/bin/app",
    "ApplicationParameters": ["a", "ü"],
    "EnvironmentVariables": ["A=1", "B="],
    "HostEnvironmentVariables": ["TERM"],
    "MemorySize": "40m",
    "Hostname": "box",
    "Mount": [
        {"Target": "/m", "Type": "ext2", "Flags": ["ro"], "Roothash": "ab" * 32},
        {"Target": "/t", "Type": "ramfs"},
    ],
}  # fmt: skip


def configuration(data: bytes) -> None:
    """Any JSON is a configuration or a usage error; a configuration has one canonical spelling, which reads back."""
    try:
        parsed = Configuration.of(parse_json_object(data))
    except (UsageError, ValueError) as error:
        one_line_of(error)
        return
    settings = json.loads(json.dumps(parsed.settings()))
    ensure(Configuration.of(settings) == parsed, "what is written is not read back")
    ensure(Configuration.of(settings).settings() == settings, "there are two spellings")
    for text in (parsed.application_path, parsed.directory, *(mount.target for mount in parsed.mounts)):
        ensure(text.startswith("/") and ".." not in text.split("/") and "\0" not in text, f"{text!r} as a path")
    os.fsencode(parsed.application_path)


def package_contents(data: bytes) -> None:
    """A signed line is refused or canonical; the keys and hashes that it trusts are listed or refused."""
    try:
        contents = PackageContents.parse(data)
    except FormatError as error:
        one_line_of(error)
        return
    ensure(contents.pack() == data, "there are two spellings")
    if not contents.public_keys and not contents.configuration.mounts:
        return
    package = open_package(sign_package(contents, signer()), [public_key()])
    ensure(package.contents == contents, "what is signed is not read back")
    for mount in (None, *contents.configuration.mounts):
        try:
            policy = package.policy(mount)
        except FormatError as error:
            one_line_of(error)
            continue
        ensure(
            not policy.trust_self and policy.insecure == contents.configuration.is_debug, "a policy that trusts more"
        )


@cache
def package_bytes() -> bytes:
    return sign_package(PackageContents(Configuration.of(CONFIGURATION), ("ab" * 32,)), signer())


def package(data: bytes) -> None:
    """Only signed bytes are accepted as a package. The first bytes choose the change to a signed one."""
    choices = Choices(data)
    original = package_bytes()
    changed = bytearray(original)
    if choices.below(2):
        changed = bytearray(choices.rest())
    while choices:
        position = choices.below(len(original)) % max(len(changed), 1)
        part = choices.take(choices.below(8))
        changed[position : position + choices.below(8)] = part
    data = bytes(changed)
    try:
        opened = open_package(data, [public_key()] if choices.below(2) else [])
    except (FormatError, NotTrusted) as error:
        one_line_of(error)
        with suppress(FormatError):
            file = PackageFile.parse(data)
            ensure(file.pack() == data, "there are two spellings of a package")
        return
    ensure(data == original or opened.signer.signer != signer().signer, "a changed package is believed")


def package_contents_seeds() -> list[bytes]:
    contents = PackageContents(Configuration.of(CONFIGURATION), ("ab" * 32,), (public_key().pem(),))
    return [contents.pack(), PackageContents(Configuration("/x")).pack()]


JSON_WORDS = [
    *(json.dumps(name).encode() for name in CONFIGURATION),
    b'"Target"', b'"Type"', b'"Flags"', b'"PublicKey"', b'"Roothash"', b'"ext2"', b'"hostfs"', b'"ramfs"', b'"rw"',
    b'"UserMemSize"', b'"CurrentWorkingDirectory"', b'"HostApplicationParameters"', b'"SecurityVersion"', b'"ForkMode"',
    b'"KernelMemSize"', b"true", b"false", b"null", b"1e999", b"Infinity", b"-1", b"65536", b"9223372036854775808",
    b'"\\u0000"', b'"\\ud800"', b'"/a/../b"', b'"//a"', b'"="', b"[[[[", b"{}", b"[]",
]  # fmt: skip


# -- keys and signatures


def keys(data: bytes) -> None:
    """Any bytes are refused or an RSA key of an accepted size, in PEM and in DER; and no key verifies noise."""
    choices = Choices(data)
    is_pem = choices.below(2)
    text = choices.rest()
    try:
        key = PublicKey.from_pem(text, "key") if is_pem else PublicKey.from_der(text, "key")
    except (UsageError, FormatError) as error:
        ensure(isinstance(error, UsageError if is_pem else FormatError), "an error of the other kind")
        one_line_of(error)
        return
    ensure(2048 <= key.key.key_size <= 8192 and len(key.signer) == 32, "a key of impossible size")
    ensure(PublicKey.from_pem(key.pem().encode(), "again").is_same_as(key), "what is written is not read back")
    size = (key.key.key_size + 7) // 8
    for signature in (b"", bytes(size), b"\1".rjust(size, b"\0"), b"\xff" * size, bytes(1024), text[:size]):
        ensure(not key.verifies(bytes(32), signature), "noise is a signature")


def keys_seeds() -> list[bytes]:
    pem = (DATA / "public.pem").read_bytes()
    return [b"\1" + pem, b"\0" + signer().public_der(), b"\1" + public_key().pem().encode(), b"\1" + KEY_PEM]


# -- words of the command line


def words(data: bytes) -> None:
    """Sizes, times, numbers and root hashes of the command line."""
    text = data.decode("utf-8", "surrogateescape")
    limits: Sequence[tuple[Callable[[str], float], float]] = (
        (parse_size, 1 << 62), (parse_id, 2**32 - 1), (parse_seconds, math.inf),
    )  # fmt: skip
    for parse, limit in limits:
        try:
            value = parse(text)
        except click.BadParameter as error:
            one_line_of(error)
            continue
        ensure(0 <= value < limit or value == limit == math.inf, f"{text!r} is {value}")
        if parse is parse_seconds:
            ensure(value > 0, "no time at all")
        else:
            ensure(parse(str(value)) == value and text.isascii(), f"{text!r} is {value}")
    found = hex_digest(text)
    ensure(found is None or len(found) in (32, 64), "a root hash of impossible size")


def options(data: bytes) -> None:
    """-o of mount and of mount(8), and --mount of exec."""
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")
    given: dict[str, Any] = {"roothashes": (), "pubkeys": ()}
    try:
        flags = parse_mount_options(text, given)
    except (UsageError, MountError) as error:
        one_line_of(error)
    else:
        ensure(flags <= OPTION_NAMES, f"flags {flags}")
        parse_size(str(given.get("overlay_limit", 0))), parse_id(str(given.get("uid", 0)))
    MountOptions("/", text).fuse_options()
    ensure(all(option.isascii() and option.isprintable() for option in MountOptions("/", text).fuse_options()), text)
    try:
        mount = ContainerMount.parse("/nowhere/image=/target," + text)
    except (UsageError, MountError) as error:
        one_line_of(error)
    else:
        ensure(mount.is_image and mount.target == "/target", "another target")
    try:
        call = _Call.parse(["image", "directory", *text.split("\n")])
        for_us = _options_for_us(call)
        parse_mount_options(",".join(for_us), dict(given))
        if call.has("-o"):
            call.without_key(3)
    except MystfuseError as error:
        ensure(isinstance(error, UsageError | MountError), "an error of another kind")
        one_line_of(error)


def option_words() -> list[bytes]:
    return [name.encode() for name in sorted(OPTION_NAMES)] + [
        b"=", b",", b"\\,", b"-o\n", b"-s\n", b"-N\n", b"-t\nmystfuse", b"defaults", b"x-systemd.a=", b"nofail",
        b"key=", b"allow_suid", b"remount", b"64M", b"30",
    ]  # fmt: skip


TARGETS = [
    Target("fssig", fssig, fssig_seeds, 1200),
    Target("verity", verity, verity_seeds, 600, [b"verity\0\0", b"sha256", b"sha512", struct.pack("<I", 4096)]),
    Target("luks1", luks1, luks1_seeds, 600, [
        b"LUKS\xba\xbe\0\1", b"aes\0", b"xts-plain64\0", b"cbc-essiv:sha256\0", b"ecb\0", b"sha1\0", b"sha512\0",
        b"\0\xac\x71\xf3", b"\0\0\xde\xad", struct.pack(">I", 4000),
    ]),
    Target("luks2", luks2, luks2_seeds, 4096, LUKS2_WORDS),
    Target("configuration", configuration, lambda: [json.dumps(CONFIGURATION).encode()], 4096, JSON_WORDS),
    Target("package", package, lambda: [b"\0", b"\1" + package_bytes()], 4096),
    Target("package-contents", package_contents, package_contents_seeds, 4096, JSON_WORDS),
    Target("keys", keys, keys_seeds, 4096),
    Target("words", words, lambda: [b"64M", b"1.5", b"0", b"1000", b"ab" * 32, b"1GiB", b"1e9"], 140),
    Target("options", options, lambda: [
        b"ro,allow_other,roothash=" + b"ab" * 32, b"overlay_limit=64M,uid=5,gid=6,io_timeout=3,key_file=a\\,b",
        b"-o\nro,nofail,noexec,trust_self\n-t\nmystfuse\n-s",
    ], 400, option_words()),
]  # fmt: skip
