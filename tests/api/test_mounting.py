"""``mystfuse.mount`` and the pytest fixture ``mystfuse_mount``, as programs use them."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import trio

import mystfuse
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import run
from tests.support.json_documents import check_document
from tests.support.mounts import clear_mount

MakeKeys = Callable[..., tuple[Path, Path]]


def test_an_image_is_mounted_for_a_block(small_image: Path, small_tree: Path, mountpoint: Path) -> None:
    with mystfuse.mount(small_image, mountpoint, trust="self") as m:
        assert m.mountpoint == mountpoint and os.fspath(m) == str(mountpoint)
        run("diff", "-r", "--no-dereference", "--exclude=lost+found", small_tree, m)
        (mountpoint / "new").write_text("new\n")
        status = m.status()
        assert (status["trust"], status["read_only"]) == ("self", False)
        made = m.commit(mountpoint.parent / "new.img")
        check_document("commit", made)
    assert find_mount(str(mountpoint)) is None and list(mountpoint.iterdir()) == []
    with mystfuse.mount(mountpoint.parent / "new.img", mountpoint, trust="self", read_only=True):
        assert (mountpoint / "new").read_text() == "new\n"
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "other").touch()


def test_what_the_block_raises_comes_out_and_nothing_is_left(small_image: Path, mountpoint: Path) -> None:
    with pytest.raises(ZeroDivisionError), mystfuse.mount(small_image, mountpoint, trust="self"):
        1 / 0  # noqa: B018
    assert find_mount(str(mountpoint)) is None


def test_no_key_is_trusted_unless_given(
    small_image: Path, mountpoint: Path, make_keys: MakeKeys, tmp_path: Path
) -> None:
    public, private = make_keys("mounting", 2048, 65537)
    signed = tmp_path / "signed.img"
    made = mystfuse.make_image(public.parent, signed, options=[f"--sign={public}:{private}"])
    check_document("mkext2", made)
    assert made["image"] == str(signed) and made["signer"] is not None
    with pytest.raises(mystfuse.NotTrusted), mystfuse.mount(small_image, mountpoint):
        pass
    with pytest.raises(mystfuse.NotTrusted), mystfuse.mount(small_image, mountpoint, pubkeys=[public]):
        pass
    root_hash = run(sys.executable, "-m", "mystfuse", "fssig", "--roothash", small_image).stdout.strip()
    for given in (root_hash, bytes.fromhex(root_hash)):
        with mystfuse.mount(small_image, mountpoint, roothashes=[given]) as m:
            assert m.status()["trust"] == "root hash"
    for given_key in (public, public.read_bytes()):
        with mystfuse.mount(signed, mountpoint, pubkeys=[given_key]) as m:
            assert m.status()["trust"] == "signature"


def test_keys_open_encrypted_images_and_stay_secret(small_tree: Path, mountpoint: Path, tmp_path: Path) -> None:
    key, passphrase = secrets.token_bytes(64), "a passphrase that ends in a newline\n"
    for name, content in (("key", key), ("passphrase", passphrase.encode() + b"\n")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(content)
    image = tmp_path / "secret.img"
    options = [f"--encrypt={tmp_path / 'key'}", f"--passphrase-file={tmp_path / 'passphrase'}"]
    mystfuse.make_image(small_tree, image, options=options)
    for given in ({"key": key}, {"key": key.hex()}, {"passphrase": passphrase}):
        with mystfuse.mount(image, mountpoint, trust="self", **given) as m:  # type: ignore[arg-type]
            pid = m.status()["pid"]
            shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert key.hex().encode() not in shown and passphrase.encode() not in shown
    for wrong in ({}, {"key": bytes(64)}, {"key": key[1:]}, {"passphrase": passphrase.strip()}):
        with pytest.raises(mystfuse.WrongKey), mystfuse.mount(image, mountpoint, trust="self", **wrong):  # type: ignore[arg-type]
            pass


def test_errors_are_exceptions(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(100_000))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"x" * 2048 + small_image.read_bytes()[2048:])
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled/file").touch()
    cases: list[tuple[type[Exception], Path, Path]] = [
        (mystfuse.FormatError, garbage, mountpoint),
        (mystfuse.IntegrityError, damaged, mountpoint),
        (mystfuse.MountError, small_image, tmp_path / "nowhere"),
        (mystfuse.MountError, small_image, tmp_path / "filled"),
        (mystfuse.MystfuseError, tmp_path / "absent", mountpoint),
    ]
    for kind, image, where in cases:
        with pytest.raises(kind) as caught, mystfuse.mount(image, where, trust="self"):
            pass
        assert "\n" not in str(caught.value) and not str(caught.value).startswith("mystfuse:")
    for arguments in (
        {"trust": "everybody"}, {"roothashes": "ab" * 32}, {"pubkeys": mountpoint}, {"key": b"", "trust": "self"},
        {"key": b"x", "passphrase": "y"}, {"key": b"x" * 5000},
    ):  # fmt: skip
        with pytest.raises(mystfuse.UsageError), mystfuse.mount(small_image, mountpoint, **arguments):  # type: ignore[arg-type]
            pass
    with pytest.raises(mystfuse.UsageError), mystfuse.mount(small_image, mountpoint, options=["no_such_thing"]):
        pass


def test_a_busy_mount_is_reported_and_unmounted(
    small_image: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mystfuse.mounting.unmount.BUSY_PATIENCE", 0.05)
    with (
        pytest.raises(mystfuse.MountError, match=r"busy|in use"),
        mystfuse.mount(small_image, mountpoint, trust="self"),
    ):
        file = (mountpoint / "hello.txt").open()
    assert find_mount(str(mountpoint)) is None
    assert file.read() == "hello\n"
    file.close()


def test_another_process_may_unmount_it(small_image: Path, mountpoint: Path) -> None:
    with mystfuse.mount(small_image, mountpoint, trust="self"):
        clear_mount(mountpoint)
    with mystfuse.mount(small_image, mountpoint, trust="self") as m:
        clear_mount(mountpoint)
        with pytest.raises(mystfuse.MountError):
            m.status()


@pytest.mark.parametrize("loop", [trio.run, lambda main: asyncio.run(main())], ids=["trio", "asyncio"])
def test_event_loops_go_on_meanwhile(small_image: Path, mountpoint: Path, loop: Callable[..., object]) -> None:
    async def main() -> None:
        async with mystfuse.mount(small_image, mountpoint, trust="self") as m:
            assert (m.mountpoint / "hello.txt").read_text() == "hello\n"

    loop(main)
    assert find_mount(str(mountpoint)) is None


def test_the_fixture_mounts_for_a_test(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/one").write_text("1")
    (tmp_path / "test_it.py").write_text(
        f"""
import os

def test_mounts(mystfuse_mount):
    empty, files = mystfuse_mount(), mystfuse_mount({str(tmp_path / "files")!r})
    image = mystfuse_mount({str(small_image)!r})
    assert os.listdir(empty) == ["lost+found"]
    (empty / "big").write_bytes(bytes(60 << 20))
    assert (files / "one").read_text() == "1"
    assert (image / "hello.txt").read_text() == "hello\\n"
    print("MOUNTED", empty)
"""
    )
    # An installed mystfuse brings the plugin itself; one in PYTHONPATH alone does not.
    is_installed = any(point.value == "mystfuse.api.pytest_plugin" for point in entry_points(group="pytest11"))
    plugin = [] if is_installed else ["-p", "mystfuse.api.pytest_plugin"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", *plugin, "-p", "no:cacheprovider",
         "--basetemp", tmp_path / "base", tmp_path / "test_it.py"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    where = result.stdout.partition("MOUNTED ")[2].split()[0]
    assert where.startswith(str(tmp_path)) and find_mount(where) is None
