"""``ImageTree`` opens with trust and keys as a mount does, and names the damaged parts."""

from __future__ import annotations

import _thread
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import mystfuse as api
from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.policy import trust_without_tree
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import Editor, MemoryDevice, make_image
from tests.support.image_trees import assert_agrees
from tests.support.mounts import mounted

PASSPHRASE = "open sesame, käse"


async def test_an_untrusted_image(small_image: Path) -> None:
    with pytest.raises(api.NotTrusted):
        async with api.open_image(small_image):
            pytest.fail("opened")
    async with api.open_image(small_image, insecure=True) as tree:
        assert "insecure" in tree.trust_explanation
    with pytest.raises(api.UsageError, match="only"):
        async with api.open_image(small_image, trust="anybody"):  # type: ignore[arg-type]
            pytest.fail("opened")


async def test_root_hashes_and_keys_in_every_form(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    public, private = make_keys("api")
    other, _ = make_keys("other")
    image = tmp_path / "image"
    assert mystfuse("mkext2", "--sign", f"{public}:{private}", small_tree, image).returncode == 0
    text = mystfuse("fssig", "--roothash", image).stdout
    (tmp_path / "hash").write_text(text)
    for good in (text, bytes.fromhex(text), tmp_path / "hash", str(tmp_path / "hash")):
        async with api.open_image(str(image), roothashes=[good]) as tree:
            assert tree.root_hash == bytes.fromhex(text)
            assert tree.trust_explanation == "its root hash is a trusted one"
            assert str(tree.uuid) in run("dumpe2fs", "-h", image).stdout
    for key in (public, str(public), public.read_bytes()):
        async with api.open_image(image, pubkeys=[other, key]) as tree:
            assert "signed by trusted key" in tree.trust_explanation
    for bad in ({"roothashes": [bytes(32)]}, {"pubkeys": [other]}, {"roothashes": [bytes(32)], "trust": "self"}):
        with pytest.raises(api.NotTrusted):
            async with api.open_image(image, **bad):
                pytest.fail("opened")
    for senseless in (
        {"roothashes": [b"short"]}, {"roothashes": text}, {"roothashes": ["no hash"]}, {"pubkeys": [b"no PEM"]},
        {"pubkeys": public}, {"key": b""}, {"key": b"k", "passphrase": "p"}, {"hash_offset": 4096},
    ):  # fmt: skip
        with pytest.raises(api.UsageError):
            async with api.open_image(image, **senseless):  # type: ignore[arg-type]
                pytest.fail("opened")
    # The machine's trusted keys count as on the command line.
    (tmp_path / "trust.d").mkdir()
    (tmp_path / "trust.d/a.pem").write_bytes(public.read_bytes())
    monkeypatch.setattr("mystfuse.trust.sources.TRUST_DIRECTORY", tmp_path / "trust.d")
    async with api.open_image(image) as tree:
        assert "signed by trusted key" in tree.trust_explanation


async def test_an_image_without_a_signature_block(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", size="1M")
    output = run("veritysetup", "format", "--hash-offset=1048576", image, image).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", output)
    async with api.open_image(image, hash_offset=1 << 20, roothashes=[root_hash]) as tree:
        assert [entry.name async for entry in tree.scandir("/")] == ["lost+found"]


@pytest.fixture(scope="module")
def encrypted(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("encrypted")
    key = secrets.token_bytes(64)
    for name, data in (("key", key), ("passphrase", PASSPHRASE.encode())):
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(data)
    image = directory / "image"
    options = ("--encrypt", directory / "key", "--passphrase-file", directory / "passphrase")
    assert mystfuse("mkext2", *options, small_tree, image).returncode == 0
    return image, key


async def test_key_and_passphrase_open_an_encrypted_image(encrypted: tuple[Path, bytes], tmp_path: Path) -> None:
    image, key = encrypted
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(key)
    for given in ({"key": key}, {"key": key.hex()}, {"passphrase": PASSPHRASE}, {"passphrase": PASSPHRASE.encode()}):
        async with api.open_image(image, trust="self", **given) as tree:
            assert await tree.read_file("sub/hard") == b"hello\n"
    with mounted(image, tmp_path / "mount", "-r", "--key-file", str(tmp_path / "key")) as mountpoint:
        async with api.open_image(image, trust="self", key=key) as tree:
            await assert_agrees(tree, mountpoint)
    for wrong in ({}, {"key": key[::-1]}, {"key": b"short"}, {"passphrase": "no"}):
        with pytest.raises(api.WrongKey):
            async with api.open_image(image, trust="self", **wrong):
                pytest.fail("opened")


async def test_threads_begin_after_the_fork_of_the_derivation_process(
    encrypted: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def recording(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            events.append(event)
            return function(*arguments)

        return call

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr("os.fork", recording("fork", os.fork))
    monkeypatch.setattr("_thread.start_new_thread", recording("thread", _thread.start_new_thread))
    async with api.open_image(encrypted[0], trust="self", passphrase=PASSPHRASE) as tree:
        assert await tree.read_file("sub/hard") == b"hello\n"
    assert events.count("fork") == 1
    assert events[events.index("fork") :].count("thread") >= 4


async def test_a_key_for_an_image_that_is_not_encrypted(small_image: Path) -> None:
    with pytest.raises(api.WrongKey, match="not encrypted"):
        async with api.open_image(small_image, trust="self", key=bytes(64)):
            pytest.fail("opened")


async def test_what_is_no_image_is_reported(tmp_path: Path) -> None:
    with pytest.raises(api.ImageReadError):
        async with api.open_image(tmp_path / "nope"):
            pytest.fail("opened")
    (tmp_path / "zeros").write_bytes(bytes(10_000))
    with pytest.raises(api.FormatError):
        async with api.open_image(tmp_path / "zeros", trust="self"):
            pytest.fail("opened")


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
async def test_a_damaged_block_costs_what_is_in_it(small_image: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    data = bytearray(small_image.read_bytes())
    position = data.index(b"longest name\n")
    data[position] ^= 1
    image.write_bytes(data)
    async with api.open_image(image, trust="self") as tree:
        with pytest.raises(api.IntegrityError):
            await tree.read_file("n" * 255)
        assert await tree.read_file("hello.txt") == b"hello\n"


async def test_errors_of_the_block_come_out_as_they_are(small_image: Path) -> None:
    for error in (RuntimeError("mine"), ExceptionGroup("mine", [ValueError("one"), KeyError("two")])):
        with pytest.raises(type(error)) as caught:
            async with api.open_image(small_image, trust="self"):
                raise error
        assert caught.value is error
    with trio.move_on_after(0.05) as scope:
        async with api.open_image(small_image, trust="self"):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with suppress(ZeroDivisionError):
        async with api.open_image(small_image, trust="self") as tree, trio.open_nursery() as nursery:
            nursery.start_soon(tree.read_file, "hello.txt")
    before = len(os.listdir("/proc/self/fd"))
    async with api.open_image(small_image, trust="self"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


async def test_broken_entries_and_cycles_are_reported(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "dir/below").mkdir(parents=True)
    for name in ("good", "bad"):
        (source / name).write_text(name)
    editor = Editor(make_image(tmp_path / "image", tree=source).read_bytes())
    _, bad = editor.find(2, b"bad")
    editor.put("<H", editor.inode(bad), 0)
    tree = ImageTree(await editor.open(), trust_without_tree())
    entries = {entry.name: entry async for entry in tree.scandir("/")}
    assert entries["good"].is_file() and not entries["good"].is_dir()
    for ask in (entries["bad"].is_file, entries["bad"].stat):
        with pytest.raises(api.CorruptFilesystem, match=f"inode {bad}"):
            ask()
    assert entries["bad"].inode == bad
    with pytest.raises(api.CorruptFilesystem):
        await tree.stat("bad")
    # A directory below itself.
    _, directory = editor.find(2, b"dir")
    position, _ = editor.find(directory, b"below")
    editor.put("<I", position, directory)
    tree = ImageTree(await Volume.open(MemoryDevice(editor.data)), trust_without_tree())
    with pytest.raises(api.CorruptFilesystem, match="more than one place"):
        async for _ in tree.walk("/"):
            pass
    assert (await tree.stat("dir/below/below/below/..")).st_ino == directory
