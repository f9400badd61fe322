"""Completion as people have it: bash, zsh and fish in a terminal, with keys and a screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.cli.completion import SHELLS
from tests.support.made_images import make
from tests.support.mounts import mounted
from tests.support.terminal import Terminal, terminal

LINES = {
    "a command": ("mystfuse umo", "mystfuse umount "),
    "a command behind another": ("true; FOO=1 mystfuse umo", "true; FOO=1 mystfuse umount "),
    "a command in a group": ("mystfuse keys fing", "mystfuse keys fingerprint "),
    "the command that helps": ("mystfuse help verif", "mystfuse help verify "),
    "the image of the short form": ("mystfuse app", "mystfuse app.img "),
    "an option of the short form": ("mystfuse app.img --over", "mystfuse app.img --overlay-"),
    "the mountpoint of the short form": ("mystfuse app.img mn", "mystfuse app.img mnt/"),
    "an option": ("mystfuse ls --pubk", "mystfuse ls --pubkey "),
    "a choice": ("mystfuse mount --on-corruption u", "mystfuse mount --on-corruption unmount "),
    "a choice behind an equals sign": (
        "mystfuse app.img --on-corruption=u", "mystfuse app.img --on-corruption=unmount "
    ),
    "a key, not any file": ("mystfuse ls --pubkey pub", "mystfuse ls --pubkey public.pem "),
    "a key behind an equals sign": ("mystfuse ls --pubkey=pub", "mystfuse ls --pubkey=public.pem "),
    "a key behind a colon": (
        "mystfuse mkext2 --sign public.pem:priv", "mystfuse mkext2 --sign public.pem:private.pem "
    ),
    "a mount option": ("mystfuse mount -o ro,no_tr", "mystfuse mount -o ro,no_trust_self "),
    "a mount option with a value": ("mystfuse mount -o ro,io_t", "mystfuse mount -o ro,io_timeout="),
    "the value of a mount option": (
        "mystfuse mount -o ro,on_corruption=u", "mystfuse mount -o ro,on_corruption=unmount "
    ),
    "a file in a mount option": ("mystfuse mount -o ro,pubkey=pub", "mystfuse mount -o ro,pubkey=public.pem "),
    "a directory": ("mystfuse mkext2 tr", "mystfuse mkext2 tree/"),
    "a file with blanks in a directory": ("mystfuse info my\\ im", "mystfuse info my\\ images/"),
    "a file with blanks": ("mystfuse info my\\ images/", "mystfuse info my\\ images/b\\ c.img "),
    "a variable": ("mystfuse exec --env HOM", "mystfuse exec --env HOME "),
    "a directory in an image": ("mystfuse ls app.img /et", "mystfuse ls app.img /etc/"),
    "a file in an image": ("mystfuse cat app.img /etc/", "mystfuse cat app.img /etc/hosts "),
    "a file in an image without a slash": ("mystfuse cat app.img etc/ho", "mystfuse cat app.img etc/hosts "),
    "a program in an image": ("mystfuse exec app.img /bin/", "mystfuse exec app.img /bin/hello "),
    "blanks and no ASCII": ("mystfuse cat app.img /my\\ dir/", "mystfuse cat app.img /my\\ dir/ä\\ b "),
    "in quotes": ('mystfuse cat app.img "/my dir/', 'mystfuse cat app.img "/my dir/ä b" '),
    "an image with blanks": (
        "mystfuse cat my\\ images/b\\ c.img /my\\ dir/", "mystfuse cat my\\ images/b\\ c.img /my\\ dir/ä\\ b "
    ),
    "an image at home": ("mystfuse cat ~/at-home.img /etc/", "mystfuse cat ~/at-home.img /etc/hosts "),
    "nothing of an image that is not trusted": (
        "mystfuse cat --no-trust-self app.img /etc/", "mystfuse cat --no-trust-self app.img /etc/"
    ),
    "a shell": ("mystfuse completion install fi", "mystfuse completion install fish "),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an image, keys, and names that need quoting."""
    directory = tmp_path_factory.mktemp("files")
    for name in ("tree/etc", "tree/bin", "tree/my dir", "my images", "mnt", "my mount"):
        (directory / name).mkdir(parents=True)
    (directory / "tree/etc/hosts").write_text("127.0.0.1 localhost\n")
    (directory / "tree/my dir/ä b").touch()
    (directory / "tree/bin/hello").touch(0o755)
    (directory / "tree/bin/text").touch(0o644)
    for name in "public.pem", "private.pem", "public.txt":
        (directory / name).touch()
    make(directory / "tree", directory / "app.img")
    (directory / "my images/b c.img").write_bytes((directory / "app.img").read_bytes())
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    home = tmp_path_factory.mktemp("home")
    (home / "at-home.img").symlink_to(files / "app.img")
    with terminal(request.param, home, files) as opened:
        yield opened


@pytest.mark.parametrize(("typed", "expected"), LINES.values(), ids=LINES)
def test_a_word_is_completed(typed: str, expected: str, shell: Terminal) -> None:
    assert shell.complete(typed) == expected


def test_what_there_is_to_choose_from_is_shown(shell: Terminal) -> None:
    screen = shell.choices("mystfuse ", "mount", "umount", "completion", "app.img", "tree/")
    assert "Traceback" not in screen and "mystfuse:" not in screen


def test_mount_options_are_shown(shell: Terminal) -> None:
    shell.choices("mystfuse mount -o ro,no", "ro,noexec", "ro,nocontrol", "ro,no_superblock")


def test_options_are_shown(shell: Terminal) -> None:
    shell.choices("mystfuse verify --", "--roothash", "--files", "--json", "--no-trust-self")


def test_mountpoints_are_completed(shell: Terminal, files: Path) -> None:
    with mounted(files / "app.img", files / "my mount"):
        for command in "umount", "status", "commit":
            assert shell.complete(f"mystfuse {command} my") == f"mystfuse {command} my\\ mount "
        start = str(files / "my mount")[:-2].replace(" ", "\\ ")
        assert shell.complete(f"mystfuse umount {start}") == f"mystfuse umount {start}nt "
