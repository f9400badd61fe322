"""Making files of many kinds, each by the program that makes them for users."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.encrypted_images import write_secret

MIB = 1 << 20
PHRASE = "open sesame, käse"
CHEAP = ("-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
"""Key slots that cost nothing."""


@dataclass(frozen=True)
class OtherFile:
    """A kind of file."""

    kind: str
    """``Kind.name``."""
    title: str
    """A part of ``Kind.title``."""
    make: Callable[[Path], object]
    """Makes one at a path that is not there; the path's directory is for whatever that takes."""
    file_says: str = ""
    """A part of what file(1) says; nothing where it does not know this kind."""
    blkid_says: str = ""
    """What blkid(8) calls it; nothing likewise."""
    name: str = "x"
    """Of the file."""
    leads_to: str = ""
    """What the command that is advised leads to: an ``image``, or the ``info`` of a file that was in it; nothing where
    the command cannot be run here, or names what only its user knows."""


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def sized(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def tree(path: Path) -> Path:
    """A directory to be packed, beside ``path``."""
    directory = path.parent / "packed"
    (directory / "sub").mkdir(parents=True)
    (directory / "hello").write_text("hello\n")
    (directory / "sub/data").write_bytes(bytes(range(256)) * 64)
    return directory


def formatted(size: int, *command: str) -> Callable[[Path], object]:
    """A file of this size that a command formats, which gets its name last."""
    return lambda path: run(*command, sized(path, size))


def packed(*command: str | Path) -> Callable[[Path], object]:
    """What a command makes, in ``tree``, of what is there: TARGET stands for the file."""
    return lambda path: run(*(path if word == "TARGET" else word for word in command), cwd=tree(path))


def piped(*command: str) -> Callable[[Path], object]:
    """The stdout of a command whose stdin is an image."""

    def make(path: Path) -> None:
        image(path.parent / "plain.img")
        with (path.parent / "plain.img").open("rb") as source, path.open("wb") as target:
            subprocess.run(command, stdin=source, stdout=target, check=True, timeout=60)

    return make


def image(path: Path, *options: str | Path) -> Path:
    result = in_process("mkext2", *options, tree(path), path)
    assert result.returncode == 0, result.stderr
    return path


def encrypted_image(path: Path) -> Path:
    key = write_secret(path.parent / "key", os.urandom(64))
    return image(path, "--encrypt", key)


def cut(by: int, make: Callable[[Path], Path] = image) -> Callable[[Path], object]:
    return lambda path: os.truncate(make(path), path.stat().st_size - by)


def lengthened(path: Path) -> None:
    os.truncate(image(path), path.stat().st_size + 5 * MIB + 77)


def with_broken_tree(path: Path) -> None:
    with image(path).open("r+b") as file:
        file.seek(-4096 + 16, os.SEEK_END)
        (offset,) = struct.unpack("<Q", file.read(8))
        file.seek(offset + 8)
        file.write(b"\xff" * 8)


def with_veritysetup(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A hash tree by veritysetup behind what ``make`` makes."""

    def make_both(path: Path) -> None:
        make(path)
        size = path.stat().st_size
        run("veritysetup", "format", path, path, f"--hash-offset={size}")

    return make_both


def hash_tree_alone(path: Path) -> None:
    run("veritysetup", "format", sized(path.parent / "data", MIB), path)


def ext(kind: str, *options: str) -> Callable[[Path], object]:
    return lambda path: run("mke2fs", "-q", "-t", kind, "-L", "lbl", *options, "-d", tree(path), path, "8M")


def with_full_journal(path: Path) -> None:
    ext("ext3")(path)
    run("debugfs", "-w", "-R", "feature needs_recovery", path)


def cut_ext2(path: Path) -> None:
    ext("ext2")(path)
    os.truncate(path, 5 * MIB)


def luks(version: int, *options: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        phrase = write_secret(path.parent / "phrase", PHRASE)
        cost = CHEAP if version == 2 else CHEAP[:1]
        more = () if version == 2 else ("--iter-time", "1")
        run("cryptsetup", "luksFormat", *cost, *more, *options, f"--type=luks{version}", sized(path, 20 * MIB), phrase,
            stdin=subprocess.DEVNULL)  # fmt: skip

    return make


def detached_header(version: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        phrase = write_secret(path.parent / "phrase", PHRASE)
        run("cryptsetup", "luksFormat", *CHEAP[:1], *(CHEAP[1:] if version == 2 else ("--iter-time", "1")),
            f"--type=luks{version}", f"--header={path}", sized(path.parent / "data", 2 * MIB), phrase,
            stdin=subprocess.DEVNULL)  # fmt: skip

    return make


def partitioned(script: str) -> Callable[[Path], object]:
    """A disk with an ext4 file system at 1 MiB."""

    def make(path: Path) -> None:
        ext("ext4")(path.parent / "inner")
        # Otherwise it calls sync(2), which waits for every file system of the machine.
        run("sfdisk", "-q", "--no-tell-kernel", sized(path, 16 * MIB), input=script)
        with path.open("r+b") as disk:
            disk.seek(MIB)
            disk.write((path.parent / "inner").read_bytes())

    return make


def virtual_disk(form: str, *options: str) -> Callable[[Path], object]:
    return lambda path: run(
        "qemu-img", "convert", "-f", "raw", "-O", form, *options, image(path.parent / "plain.img"), path
    )


def fixed_vhd(path: Path) -> None:
    """A disk with a footer behind it."""
    partitioned("label: gpt\n")(path.parent / "disk")
    run(
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vpc",
        "-o",
        "subformat=fixed,force_size=on",
        path.parent / "disk",
        path,
    )


def cpio(form: str) -> Callable[[Path], object]:
    return lambda path: run("sh", "-c", f"find . | cpio --quiet -o -H {form} > {path}", cwd=tree(path))


def container(with_layout: bool) -> Callable[[Path], object]:
    """The names of an OCI layout, or of docker save's archive, in a tar archive; no layer is needed to tell them."""

    def make(path: Path) -> None:
        directory = path.parent / "layout"
        (directory / "blobs/sha256").mkdir(parents=True)
        (directory / "blobs/sha256" / ("a" * 64)).write_text("{}")
        (directory / "manifest.json").write_text("[]")
        if with_layout:
            (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
            (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
        run("tar", "-C", directory, "-cf", path, ".")

    return make


def certificate(path: Path) -> None:
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", path.parent / "key",
        "-out", path)  # fmt: skip


def package(path: Path) -> None:
    (path.parent / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/app", "Debug": true}')
    run("openssl", "genrsa", "-out", path.parent / "private.pem", "2048")
    result = in_process("package", "-o", path, path.parent / "private.pem", path.parent / "config.json")
    assert result.returncode == 0, result.stderr


def unix_socket(path: Path) -> None:
    # A socket stays bound when it is closed; the path of one must be short.
    with socket.socket(socket.AF_UNIX) as bound:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            bound.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
