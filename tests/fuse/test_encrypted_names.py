"""Directories and links that are encrypted with fscrypt, on a mount without the key: as the kernel shows them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.test_projects_and_encryption import ADD_KEY, SET_POLICY
from tests.support.commands import run
from tests.support.ext2_editor import kernel_mount
from tests.support.mounts import assert_clean, mounted

SETS = {
    "default": ("-O", "encrypt"),
    "small blocks": ("-O", "encrypt", "-b", "1024"),
    "tea": ("-O", "encrypt,^metadata_csum", "-b", "1024"),
    "linear": ("-O", "encrypt,^dir_index", "-b", "1024"),
    "block maps": ("-O", "encrypt,^extent,^64bit", "-b", "1024"),
}
NAMES = [f"{number:03}-{'n' * (number * 7 % 240)}" for number in range(60)]


def fill(root: Path) -> None:
    """Directories with names of all lengths, a large and a small one; links."""
    handle = os.open(root, os.O_RDONLY)
    argument = bytearray(struct.pack("<II32sII32x", 2, 0, b"", 64, 0) + bytes(range(64)))
    fcntl.ioctl(handle, ADD_KEY, argument)
    os.close(handle)
    for name in ("large", "small"):
        (root / name).mkdir()
        handle = os.open(root / name, os.O_RDONLY)
        fcntl.ioctl(handle, SET_POLICY, struct.pack("<BBBBB3x16s", 2, 1, 4, 3, 0, argument[8:24]))
        os.close(handle)
    for name in NAMES:
        (root / "large" / name).write_text(name)
    for name in ("one", "two", "three"):
        (root / "small" / name).mkdir()
    (root / "small/one/inner").write_text("inner")
    (root / "small/short link").symlink_to("target")
    (root / "small/long link").symlink_to("t" * 300)


@pytest.fixture(params=SETS.values(), ids=SETS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", *request.param, "-I", "256", image, "16M")
    if "^metadata_csum" in request.param[1]:
        run("tune2fs", "-E", "hash_alg=tea", image)
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        fill(root)
    return image


@pytest.fixture
def sides(image: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The kernel's mount of a copy, and ours."""
    copy = tmp_path / "copy"
    copy.write_bytes(image.read_bytes())
    with (
        kernel_mount(copy, tmp_path / "kernel", "rw") as kernel,
        mounted(image, tmp_path / "ours", "--insecure") as ours,
    ):
        yield kernel, ours


def described(root: Path) -> dict[bytes, object]:
    """Every path, with what it is and where a link leads."""
    found: dict[bytes, object] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else b""
            found[os.path.relpath(path, os.fsencode(root))] = (
                status.st_ino,
                status.st_mode,
                status.st_nlink,
                status.st_size,
                target,
            )
    return found


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def test_names_and_targets_are_the_kernels(sides: tuple[Path, Path]) -> None:
    kernel, ours = map(described, sides)
    assert len(kernel) >= len(NAMES) + 8
    assert ours == kernel


def test_what_can_be_done_without_the_key(sides: tuple[Path, Path], tmp_path: Path) -> None:
    kernel, ours = sides
    large = sorted(os.listdir(kernel / "large"))
    small = {os.lstat(kernel / "small" / name).st_mode: name for name in sorted(os.listdir(kernel / "small"))}
    inner = next(name for name in os.listdir(kernel / "small") if (kernel / "small" / name).is_dir() and
                 os.listdir(kernel / "small" / name))  # fmt: skip
    assert small
    calls: list[Callable[[Path], object]] = [
        lambda side: (side / "large" / large[0]).read_bytes(),
        lambda side: (side / "large/none").stat(),
        lambda side: (side / "large" / large[1]).stat(),
        lambda side: (side / "large/new").touch(),
        lambda side: os.close(os.open(side / "large" / large[1], os.O_CREAT | os.O_EXCL)),
        lambda side: os.rename(side / "large" / large[1], side / "large" / large[2]),
        lambda side: os.rename(side / "large" / large[1], side / "out"),
        lambda side: os.link(side / "large" / large[1], side / "out"),
        lambda side: os.rmdir(side / "small" / inner),
        lambda side: os.rmdir(side / "large"),
        lambda side: os.unlink(side / "large" / large[1]),
        lambda side: os.unlink(side / "large" / large[1]),
        lambda side: [os.unlink(side / "small" / inner / name) for name in os.listdir(side / "small" / inner)],
        lambda side: os.rmdir(side / "small" / inner),
        lambda side: [os.unlink(side / "large" / name) for name in os.listdir(side / "large")],
        lambda side: os.rmdir(side / "large"),
    ]
    for number, call in enumerate(calls):
        results = [outcome(lambda side=side, call=call: call(side)) for side in sides]  # type: ignore[misc]
        assert results[0] == results[1], (number, results)
    assert described(ours) == described(kernel)
    assert_clean(ours, tmp_path)
