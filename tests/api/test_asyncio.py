"""``mystfuse.open_image`` under asyncio and anyio: the same as under trio."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import mystfuse
from mystfuse.api.async_image import AsyncImage
from mystfuse.api.asyncio_image import AsyncioFile, AsyncioImage
from mystfuse.devices.reader import ImageReader
from mystfuse.tree.image_file import ImageFile
from tests.support.commands import wait_until
from tests.support.hanging_source import HangingSource, hanging_storage
from tests.support.image_trees import assert_agrees
from tests.support.left_over import left_over
from tests.support.mounts import mounted

# asyncio, when debugging, on a slow machine.
pytestmark = pytest.mark.logs(r"^asyncio: Executing")

Main = Callable[[], Coroutine[Any, Any, None]]
RUNS: dict[str, Callable[[Main], None]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "asyncio, debugging": lambda main: asyncio.run(main(), debug=True),
    "anyio, asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "anyio, trio": lambda main: anyio.run(main, backend="trio"),
}


@pytest.fixture(params=RUNS)
def run_loop(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return RUNS[request.param]


def test_it_agrees_with_a_mount(run_loop: Callable[[Main], None], small_image: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            assert isinstance(image, mystfuse.AsyncImage)
            assert await assert_agrees(image, mountpoint) >= 12

    with mounted(small_image, tmp_path / "mount", "-r") as mountpoint:
        run_loop(main)


def test_every_method(run_loop: Callable[[Main], None], small_image: Path, small_tree: Path, tmp_path: Path) -> None:
    data = (small_tree / "sub/deep/data.bin").read_bytes()

    async def main() -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            assert image.trust_explanation == "trusted by nobody but itself" and image.signer is None
            assert await image.exists("link") and not await image.exists("long-link")
            assert await image.is_file("link") and await image.is_dir("sub") and await image.is_symlink("link")
            assert (
                not await image.is_file("sub") and not await image.is_dir("nope") and not await image.is_symlink("sub")
            )
            assert sorted(await image.listdir("/sub")) == ["deep", "hard"]
            assert await image.listdir(b"/sub/deep") == [b"data.bin"]
            seen = []
            async for path, directories, others in image.walk("/"):
                seen.append((path, len(others)))
                if path == "/":
                    directories.remove("lost+found")
            assert [path for path, _ in seen] == ["/", "/sub", "/sub/deep"]
            async with await image.open("link") as file:
                assert (await file.read(10), file.tell(), await file.pread(5, 3)) == (data[:10], 10, data[5:8])
                file.seek(-4, os.SEEK_END)
                assert await file.read() == data[-4:]
                file.seek(0)
                assert b"".join([chunk async for chunk in file]) == data
                assert {start % 4096 async for start, _ in file.data_ranges()} == {0}
            for use in (file.read, lambda: file.pread(0, 1)):
                with pytest.raises(ValueError, match="closed"):
                    await use()
            destination = tmp_path / f"copy{len(os.listdir(tmp_path))}"
            await image.extract("/sub", destination)
            assert (destination / "deep/data.bin").read_bytes() == data
            statistics = await image.statistics()
            assert statistics.blocks_verified > 0 and statistics.blocks_failed == 0
            assert 0 < statistics.free_blocks < statistics.blocks and 0 < statistics.free_inodes < statistics.inodes

    run_loop(main)


def test_asyncio_has_every_method() -> None:
    """None is left that would run trio's code in asyncio's loop."""
    for here, there in ((AsyncImage, AsyncioImage), (ImageFile, AsyncioFile)):
        for name, method in inspect.getmembers(here, inspect.isfunction):
            if not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
                continue
            # These are made of others.
            if name in {"open", "_has_type", "_resolve", "_directory", "read", "__aenter__", "__aexit__",
                        "__aiter__"}:  # fmt: skip
                continue
            assert getattr(there, name) is not method, name
            assert inspect.signature(getattr(there, name)).parameters == inspect.signature(method).parameters
            assert getattr(there, name).__doc__


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
def test_errors_come_out_as_they_are(run_loop: Callable[[Main], None], small_image: Path, tmp_path: Path) -> None:
    data = bytearray(small_image.read_bytes())
    data[data.index(b"longest name\n")] ^= 1
    (tmp_path / "damaged").write_bytes(data)

    async def main() -> None:
        for kind, path, arguments in (
            (mystfuse.NotTrusted, small_image, {}),
            (mystfuse.UsageError, small_image, {"trust": "anybody"}),
            (mystfuse.WrongKey, small_image, {"trust": "self", "key": bytes(64)}),
            (mystfuse.ImageReadError, tmp_path / "nope", {"trust": "self"}),
            (mystfuse.FormatError, tmp_path, {"trust": "self"}),
        ):  # fmt: skip
            with pytest.raises(kind) as raised:
                async with mystfuse.open_image(path, **arguments):  # type: ignore[arg-type]
                    pytest.fail("opened")
            assert type(raised.value) is kind
        for mine in (RuntimeError("mine"), ExceptionGroup("mine", [ValueError("one"), KeyError("two")])):
            with pytest.raises(type(mine)) as caught:
                async with mystfuse.open_image(small_image, trust="self"):
                    raise mine
            assert caught.value is mine
        async with mystfuse.open_image(tmp_path / "damaged", trust="self") as image:
            with pytest.raises(mystfuse.IntegrityError):
                await image.read_file("n" * 255)
            with pytest.raises(FileNotFoundError) as missing:
                await image.stat("/nope")
            assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, "/nope")
            with pytest.raises(NotADirectoryError):
                async for _ in image.scandir("hello.txt"):
                    pass
            assert await image.read_file("hello.txt") == b"hello\n"

    run_loop(main)


def test_several_images_and_many_reads_at_once(run_loop: Callable[[Main], None], small_image: Path) -> None:
    async def main() -> None:
        async with (
            mystfuse.open_image(small_image, trust="self") as one,
            mystfuse.open_image(small_image, trust="self") as two,
        ):
            found: list[bytes] = []

            async def read(image: AsyncImage) -> None:
                found.append(await image.read_file("link"))

            async with anyio.create_task_group() as group:
                for _ in range(200):
                    group.start_soon(read, one)
                    group.start_soon(read, two)
            assert set(found) == {bytes(range(256)) * 1200} and len(found) == 400

    run_loop(main)


def test_nothing_is_left_of_many_images(small_image: Path) -> None:
    async def main() -> None:
        for _ in range(10):
            async with mystfuse.open_image(small_image, trust="self") as image:
                async for _ in image.scandir("/"):
                    break
            with suppress(mystfuse.NotTrusted):
                async with mystfuse.open_image(small_image):
                    pass

    asyncio.run(main())
    before = left_over()
    asyncio.run(main())
    wait_until(lambda: left_over() <= before)


async def _by_timeout(awaitable: Awaitable[Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await awaitable


async def _by_wait_for(awaitable: Awaitable[Any]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(awaitable, 0.2)


async def _by_task(awaitable: Awaitable[Any]) -> None:
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0.2)
    task.cancel("because")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def _by_anyio(awaitable: Awaitable[Any]) -> None:
    with anyio.move_on_after(0.2) as scope:
        await awaitable
    assert scope.cancelled_caught


@pytest.mark.parametrize("cut", [_by_timeout, _by_wait_for, _by_task, _by_anyio])
def test_a_read_is_cancelled_while_storage_hangs(
    cut: Callable[[Awaitable[Any]], Awaitable[None]], small_image: Path
) -> None:
    """At once, and alone: the image goes on."""

    async def main(storage: type[HangingSource]) -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            assert await image.read_file("hello.txt") == b"hello\n"
            storage.answers.clear()
            started = time.monotonic()
            await cut(image.read_file("link"))
            assert storage.waiting and time.monotonic() - started < 5
            # What is in memory needs no storage.
            assert await image.is_dir("/")
            storage.answers.set()
            assert len(await image.read_file("link")) == 256 * 1200
            storage.answers.clear()
            hanging = asyncio.ensure_future(image.read_file("n" * 255))
            while not storage.waiting:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            started = time.monotonic()
        # The end of the block does not wait for storage; what was under way learns that it is closed.
        assert time.monotonic() - started < 5
        with pytest.raises(ValueError, match="is closed"):
            await hanging
        with pytest.raises(ValueError, match="is closed"):
            await image.stat("/")

    with hanging_storage() as storage:
        asyncio.run(main(storage))


def test_opening_is_cancelled_while_storage_hangs(small_image: Path) -> None:
    async def main() -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), mystfuse.open_image(small_image, trust="self"):
                pytest.fail("opened")
        assert time.monotonic() - started < 5

    asyncio.run(asyncio.sleep(0))
    before = left_over()
    with hanging_storage() as storage:
        storage.answers.clear()
        asyncio.run(main())
    wait_until(lambda: left_over() <= before)


def test_a_cancelled_extraction_leaves_nothing(small_image: Path, tmp_path: Path) -> None:
    async def main(storage: type[HangingSource]) -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            await image.stat("/hello.txt")
            storage.answers.clear()
            await _by_task(image.extract("/", tmp_path / "copy"))
            assert os.listdir(tmp_path) == []

    with hanging_storage() as storage:
        asyncio.run(main(storage))


@pytest.mark.logs(r"^mystfuse\.devices\.reader")
def test_io_timeout_holds(small_image: Path) -> None:
    async def main(storage: type[HangingSource]) -> None:
        async with mystfuse.open_image(small_image, trust="self", io_timeout=0.3) as image:
            storage.answers.clear()
            with pytest.raises(mystfuse.StorageTimeout):
                await image.read_file("link")

    with hanging_storage() as storage:
        asyncio.run(main(storage))


@pytest.mark.parametrize(
    "kind", ["trio", "trio, nursery", "asyncio", "asyncio, which cancels too", "asyncio, suppressed"]
)
def test_the_block_is_cancelled_when_the_images_reader_dies(
    kind: str, small_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under trio, it raises what the reader died of, and a cancellation by others is not lost."""
    dies = [False]
    original = ImageReader.run

    async def run(self: ImageReader) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(original, self)
            while not dies[0]:
                await trio.sleep(0.01)
            raise ZeroDivisionError("as ordered")

    monkeypatch.setattr(ImageReader, "run", run)

    async def block() -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            assert await image.exists("/")
            dies[0] = True
            try:
                await anyio.sleep(20)
            except asyncio.CancelledError:
                if "suppressed" not in kind:
                    raise
                with pytest.raises(ValueError, match="is closed") as caught:
                    await image.exists("/")
                assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async def cancelled() -> None:
        task = asyncio.ensure_future(block())
        while not dies[0]:
            await asyncio.sleep(0.001)
        # Ours comes a moment later.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def in_asyncio() -> None:
        with pytest.raises(ZeroDivisionError):
            await block()
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await asyncio.sleep(0)

    async def in_trio() -> None:
        with pytest.raises(ZeroDivisionError):
            if kind == "trio":
                await block()
            async with mystfuse.open_image(small_image, trust="self"), trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 20)
                dies[0] = True

    started = time.monotonic()
    if kind.startswith("trio"):
        trio.run(in_trio)
    else:
        asyncio.run(cancelled() if "too" in kind else in_asyncio())
    assert time.monotonic() - started < 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_while_an_image_is_open(small_image: Path) -> None:
    async def block() -> None:
        async with mystfuse.open_image(small_image, trust="self") as image:
            assert await image.exists("/")
            reached.set()
            await asyncio.sleep(60)

    def leave(when: str) -> None:
        nonlocal reached
        loop = asyncio.new_event_loop()
        reached = asyncio.Event()
        task = loop.create_task(block())
        if when == "open":
            loop.run_until_complete(reached.wait())
        else:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        # Python says that the task was destroyed while it was pending.
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    reached = asyncio.Event()
    before = left_over()
    for when in ("open", "opening"):
        leave(when)
        wait_until(lambda: gc.collect() >= 0 and left_over() <= before)


SCRIPT = """
import asyncio, sys, time
from mystfuse.devices import source
import mystfuse
hangs = False
def read(self, offset, length, original=source.FileSource.read):
    if hangs:
        print("hangs", flush=True)
        time.sleep(1000)
    return original(self, offset, length)
source.FileSource.read = read
source.FileSource.read_cached = lambda self, offset, buffer: False
async def main():
    global hangs
    async with mystfuse.open_image(sys.argv[1], trust="self") as image:
        await image.stat("/link")
        hangs = True
        await image.read_file("/link")
def plain():
    global hangs
    with mystfuse.Image(sys.argv[1], trust="self") as image:
        image.stat("/link")
        hangs = True
        image.read_bytes("/link")
"""


@pytest.mark.parametrize("how", ["asyncio.run(main())", "plain()"])
def test_interrupts_end_a_program_whose_storage_hangs(how: str, small_image: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + how, small_image], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert said.rstrip().endswith("KeyboardInterrupt") and "During handling" not in said.split("KeyboardInterrupt")[-1]
    assert process.returncode == -signal.SIGINT


def test_another_event_loop_is_refused(small_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("sniffio.current_async_library", lambda: "curio")
        with pytest.raises(mystfuse.UsageError, match="not under curio"):
            async with mystfuse.open_image(small_image, trust="self"):
                pytest.fail("opened")

    asyncio.run(main())
