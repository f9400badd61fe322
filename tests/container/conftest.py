"""Images with programs, and packages that run them."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.packages import APPLETS, COMMAND, Keys, root_hash


@pytest.fixture(scope="session")
def keys(make_keys: Callable[..., Keys]) -> Keys:
    """The key pair that signs the packages: public, private. (We check a private key when we read it, which takes long
    for a large one.)"""
    return make_keys("package", bits=2048)


@pytest.fixture(scope="session")
def image_keys(make_keys: Callable[..., Keys]) -> Keys:
    """The key pair that signs the images: public, private."""
    return make_keys("image")


@pytest.fixture(scope="session")
def image(image_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of busybox, signed by ``image_keys``."""
    root = tmp_path_factory.mktemp("rootfs")
    for name in "bin", "work", "tmp":
        (root / "tree" / name).mkdir(parents=True)
    shutil.copy(run("sh", "-c", "command -v busybox").stdout.strip(), root / "tree/bin/busybox")
    for applet in APPLETS:
        (root / "tree/bin" / applet).symlink_to("busybox")
    (root / "tree/hello").write_text("from the root\n")
    result = mystfuse(
        "mkext2", "--sign", f"{image_keys[0]}:{image_keys[1]}", "--free", "8M", root / "tree", root / "rootfs.img"
    )
    assert result.returncode == 0, result.stderr
    return root / "rootfs.img"


@pytest.fixture(scope="session")
def data_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image with a file ``data``."""
    root = tmp_path_factory.mktemp("data")
    (root / "tree").mkdir()
    (root / "tree/data").write_text("from the image\n")
    assert mystfuse("mkext2", root / "tree", root / "data.img").returncode == 0
    return root / "data.img"


@pytest.fixture
def package(tmp_path: Path, keys: Keys, image: Path) -> Callable[..., Path]:
    """Makes a package that trusts ``image``; settings besides a version and a path are keyword arguments."""

    def make(*options: str, trusted: bool = True, **settings: Any) -> Path:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/echo", **settings}))
        out = tmp_path / "package"
        trust = ["--roothash", root_hash(image)] if trusted else []
        result = in_process("package", *trust, *options, "--force", "-o", out, keys[1], config)
        assert result.returncode == 0, result.stderr
        return out

    return make


@pytest.fixture
def path_with_mystfuse(tmp_path: Path) -> str:
    """A PATH that has a ``mystfuse``."""
    directory = tmp_path / "path"
    directory.mkdir()
    (directory / "mystfuse").write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    (directory / "mystfuse").chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: busybox, C programs, python3 with what it needs, scripts good and bad."""
    root = tmp_path_factory.mktemp("root") / "tree"
    for name in "bin", "root", "etc", "usr/bin", "work":
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    source = root.parent / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello from C"); return 3; }\n')
    run("gcc", "-static", "-o", root / "bin/static", source)
    run("gcc", "-o", root / "bin/dynamic", source)
    libraries: set[str] = set()
    for program in root / "bin/dynamic", Path("/usr/bin/python3").resolve():
        libraries |= set(re.findall(r"(/\S+) \(0x", run("ldd", program).stdout))
    for library in libraries:
        target = root / library[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    version = f"python3.{run('/usr/bin/python3', '-c', 'import sys; print(sys.version_info.minor)').stdout.strip()}"
    shutil.copy(Path("/usr/bin/python3").resolve(), root / "usr/bin/python3")
    ignored = shutil.ignore_patterns(
        "__pycache__", "test*", "idlelib", "config-*", "dist-packages", "tkinter", "lib2to3"
    )
    shutil.copytree(f"/usr/lib/{version}", root / "usr/lib" / version, ignore=ignored, symlinks=True)
    without_loader = root / "bin/without-loader"
    without_loader.write_bytes((root / "bin/dynamic").read_bytes().replace(b"/lib64/ld-", b"/nope6/ld-"))
    foreign = bytearray((root / "bin/static").read_bytes())
    foreign[18:20] = struct.pack("<H", 8)  # MIPS
    (root / "bin/foreign").write_bytes(foreign)
    (root / "bin/script").write_text('#!/bin/sh\necho "script $1"\nexit 4\n')
    (root / "bin/no-interpreter").write_text("#!/usr/bin/perl5\n")
    (root / "bin/no-line").write_text("echo hello\n")
    (root / "bin/cut").write_bytes(b"\x7fELF\2\1")
    for name in "without-loader", "foreign", "script", "no-interpreter", "no-line", "cut":
        (root / "bin" / name).chmod(0o755)
    (root / "bin/plain").write_text("#!/bin/sh\n")
    (root / "etc/marker").write_text("from the image\n")
    (root / "dangling").symlink_to("/nowhere/at/all")
    return root


@pytest.fixture(scope="module")
def programs(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of ``tree``. Tests must not write to it."""
    path = tmp_path_factory.mktemp("image") / "root.img"
    assert mystfuse("mkext2", tree, path).returncode == 0
    return path
