"""Texts, keys, programs, and files with nothing in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from mystfuse.formats.others.kind import Kind, Sample, in_brackets
from mystfuse.system.units import describe_bytes

_GET_AGAIN = "get the file again"
_LEAST_RANDOM = 4096
"""Bytes from which on the frequencies of 256 values tell random bytes from others."""
_MACHINES = {3: "i386", 40: "ARM", 62: "x86-64", 183: "ARM64", 243: "RISC-V"}
"""ELF's e_machine: <linux/elf-em.h>."""
_ELF_TYPES = {1: "an ELF object file", 2: "an ELF program", 3: "an ELF program or library", 4: "an ELF core dump"}
_BOM = (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")


def nothing(sample: Sample) -> Kind | None:
    """A file without bytes, or with zeros alone where we look."""
    if not sample.size:
        return Kind("empty", "an empty file", f"what should have filled it has failed: {_GET_AGAIN}")
    if not any(sample.start) and not any(sample.end):
        where = "" if sample.size <= len(sample.start) else " at its beginning and its end"
        return Kind(
            "zeros",
            f"{describe_bytes(sample.size)} of nothing but zeros{where}",
            f"nothing was written to it, or only in part: {_GET_AGAIN}",
        )
    return None


def package(sample: Sample) -> Kind | None:
    """What ``mystfuse package`` makes; other versions begin with another second line."""
    if not sample.start.startswith(b"#!/bin/sh\n"):
        return None
    # Only here: it takes long to import.
    from mystfuse.formats.package import PACKAGE_HEADER

    if not sample.start.startswith(PACKAGE_HEADER[: PACKAGE_HEADER.index(b", version")]):
        return None
    return Kind("package", "a mystfuse package", "run it", ("mystfuse run {file} --rootfs IMAGE",))


def key(sample: Sample) -> Kind | None:
    """PEM (RFC 7468), OpenSSH's public keys, and OpenPGP's armour."""
    labels = re.findall(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----", sample.start[:65536])
    if labels and is_text(sample.start):
        words = ", ".join(dict.fromkeys(label.decode() for label in labels[:16]))
        if any(b"KEY" in label and b"PGP" not in label and b"OPENSSH" not in label for label in labels):
            return Kind(
                "pem", f"a PEM file ({words})", "say which signer its keys are", ("mystfuse keys fingerprint {file}",)
            )
        return Kind("pem", f"a PEM file ({words})", "it holds no image")
    if sample.start.startswith((b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"---- BEGIN SSH2")):
        return Kind("ssh-key", "a public key of ssh", "it holds no image")
    return None


def program(sample: Sample) -> Kind | None:
    """ELF (the System V ABI's gabi, chapter 4), PE, and Linux kernels (Documentation/arch/x86/boot.rst)."""
    start = sample.start
    if start[:4] == b"\x7fELF":
        order = "big" if start[5:6] == b"\2" else "little"
        title = _ELF_TYPES.get(sample.number(16, 2, order), "an ELF file")
        machine = _MACHINES.get(sample.number(18, 2, order), "")
        return Kind(
            "elf",
            title + in_brackets(machine),
            "put it into a directory, and make an image of that to run it from",
            ("mkdir -p tree/bin && cp {file} tree/bin && mystfuse mkext2 tree {image}",),
        )
    if start[0x202:0x206] == b"HdrS" or start[56:60] == b"ARM\x64":
        return Kind("kernel", "a Linux kernel", "it holds no files")
    if start[:2] == b"MZ":
        return Kind("pe", "a program for Windows or EFI", "it holds no files")
    return None


def text(sample: Sample) -> Kind | None:
    """Text: HTML, JSON, XML, a pointer of Git LFS, a script, or any other."""
    start = sample.start
    if not is_text(start):
        return None
    head = _decoded(start)[:4096].lstrip()
    lower = head.lower()
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")) or re.search(r"<html[\s>]", lower):
        return Kind(
            "html",
            "an HTML page, perhaps one that says why the file was not sent",
            f"read it, and {_GET_AGAIN} (curl -f fails instead of keeping such a page)",
        )
    if head.startswith("version https://git-lfs.github.com/spec/"):
        return Kind(
            "git-lfs",
            "a pointer of Git LFS, in place of the file itself",
            "let Git fetch it in its repository",
            ("git lfs pull --include {file}",),
        )
    if lower.startswith("<?xml"):
        return Kind("xml", "an XML document", "it holds no image")
    if head.startswith("#!"):
        return Kind("script", f"a script ({head.splitlines()[0][:64]})", "it is a program, and holds no image")
    if re.match(r'[{\[]\s*(["{\[\]}]|-?\d|true|false|null)', head):
        if '"mediaType"' in head or '"imageLayoutVersion"' in head or '"layers"' in head:
            return Kind(
                "json",
                "a JSON document of a container's image, without its layers",
                "fetch the whole image (skopeo copy docker://NAME oci:layout:image)",
            )
        return Kind("json", "a JSON document", "it holds no image")
    return Kind("text", f"a text of {describe_bytes(sample.size)}", "it holds no image")


def is_text(data: bytes) -> bool:
    """Whether bytes, the last of which may be half a character, are text: UTF-8, or UTF-16 with a byte order mark."""
    if not data:
        return False
    decoded = _decoded(data)
    if "\ufffd" in decoded[:-4]:
        return False
    return not re.search(r"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]", decoded)


def _decoded(data: bytes) -> str:
    encoding = next((name for mark, name in _BOM if data.startswith(mark)), "utf-8")
    return data.decode(encoding, "replace")


def unknown(sample: Sample) -> Kind:
    """What no recognizer knows."""
    if _is_random(sample.start):
        return Kind(
            "random",
            f"{describe_bytes(sample.size)} of random bytes, it seems: encrypted without a header, or compressed",
            f"if it should be an image, it is damaged or encrypted as a whole: {_GET_AGAIN}, or decrypt it",
        )
    return Kind(
        "unknown",
        f"{describe_bytes(sample.size)} of data of no kind that mystfuse knows",
        "file(1) may know it",
        ("file {file}",),
    )


def _is_random(data: bytes) -> bool:
    """Whether all byte values are as frequent as chance has it: chi-squared with 255 degrees of freedom is 255 +- 23
    two times in three, and exceeds 400 less than once in ten million times."""
    if len(data) < _LEAST_RANDOM:
        return False
    expected = len(data) / 256
    counts = Counter(data)
    return sum((counts[value] - expected) ** 2 for value in range(256)) / expected < 400


RECOGNIZERS: tuple[Callable[[Sample], Kind | None], ...] = (nothing, package, key, program, text)
