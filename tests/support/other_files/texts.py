"""Texts, keys, programs, and what is no file."""

from __future__ import annotations

import os

from tests.support.commands import run
from tests.support.other_files.makers import (
    MIB,
    OtherFile,
    certificate,
    package,
    sized,
    tree,
    unix_socket,
    write,
)

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>no such file</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64)
TEXTS = {
    "empty": OtherFile("empty", "an empty file", write(b""), "empty"),
    "zeros": OtherFile("zeros", "nothing but zeros", lambda path: sized(path, 3 * MIB), "data"),
    "random": OtherFile("random", "random bytes", lambda path: path.write_bytes(os.urandom(200_000))),
    "unknown": OtherFile("unknown", "no kind that mystfuse knows", write(bytes(range(7)) * 900), "data"),
    "text": OtherFile("text", "a text of", write("Käse\n".encode() * 40_000), "UTF-8"),
    "utf-16": OtherFile("text", "a text of", write("\ufeffKäse\n".encode("utf-16-le") * 400), "UTF-16"),
    "html": OtherFile("html", "an HTML page", write(HTML), "HTML document"),
    "json": OtherFile("json", "a JSON document", write(b'{"a": [1, 2]}\n'), "JSON"),
    "manifest": OtherFile("json", "without its layers", write(b'{"schemaVersion": 2, "layers": []}'), "JSON"),
    "xml": OtherFile("xml", "an XML document", write(b"<?xml version='1.0'?>\n<a/>\n"), "XML"),
    "script": OtherFile("script", "a script (#!/bin/bash)", write(b"#!/bin/bash\necho hello\n"), "shell script"),
    "git-lfs": OtherFile("git-lfs", "a pointer of Git LFS", write(LFS), "ASCII text"),
    "private key": OtherFile(
        "pem", "a PEM file (PRIVATE KEY)", lambda path: run("openssl", "genrsa", "-out", path, "2048"), "ASCII text"
    ),
    "certificate": OtherFile("pem", "a PEM file (CERTIFICATE)", certificate, "certificate"),
    "ssh key": OtherFile(
        "ssh-key", "a public key of ssh", write(b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me\n"), "public key"
    ),
    "program": OtherFile("elf", "an ELF program", lambda path: run("cp", "/bin/true", path), "ELF", leads_to="image"),
    "package": OtherFile("package", "a mystfuse package", package, "shell script"),
    "directory": OtherFile(
        "directory", "a directory", lambda path: tree(path).rename(path), "directory", leads_to="image"
    ),
    "fifo": OtherFile("fifo", "a FIFO", os.mkfifo, "fifo"),
    "socket": OtherFile("socket", "a socket", unix_socket, "socket"),
    "device": OtherFile("device", "a character device", lambda path: path.symlink_to("/dev/null"), "character special"),
}
