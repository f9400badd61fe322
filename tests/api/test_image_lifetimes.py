"""``mystfuse.Image`` among threads, forks, interrupts and ends of programs: nothing hangs, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio

import mystfuse
from mystfuse.crypto import derivation_process
from tests.support.commands import run, wait_until
from tests.support.encrypted_images import write_secret
from tests.support.hanging_source import HangingSource, hanging_storage
from tests.support.left_over import left_over

DATA = bytes(range(256)) * 1200
"""Of /sub/deep/data.bin, where /link points."""
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def encrypted(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that PASSPHRASE opens."""
    directory = tmp_path_factory.mktemp("encrypted")
    options = [f"--encrypt={write_secret(directory / 'key', secrets.token_bytes(64))}",
               f"--passphrase-file={write_secret(directory / 'passphrase', PASSPHRASE)}"]  # fmt: skip
    mystfuse.make_image(small_tree, directory / "image", options=options)
    return directory / "image"


def in_threads(count: int, action: Callable[[int], None]) -> list[BaseException]:
    """Run it in threads; returns what they have raised."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            action(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


def test_threads_read_one_image_at_once(small_image: Path) -> None:
    with mystfuse.Image(small_image, trust="self") as image, image.open("link", "rb") as shared:

        def read(number: int) -> None:
            dice = random.Random(number)
            with image.open("/sub/deep/data.bin", "rb") as file:
                for _ in range(40):
                    match dice.randrange(5):
                        case 0:
                            assert image.read_bytes("link") == DATA
                        case 1:
                            start = file.seek(dice.randrange(len(DATA)))
                            assert file.read(1000) == DATA[start : start + 1000]
                        case 2:
                            assert {"hello.txt", "sub"} <= {entry.name for entry in image.scandir("/")}
                        case 3:
                            assert [path for path, _, _ in image.walk("/sub")] == ["/sub", "/sub/deep"]
                            with suppress(FileNotFoundError):
                                image.stat("/nope")
                                pytest.fail("found")
                        case 4:
                            # Their positions mix, the bytes do not.
                            assert shared.read(100) in DATA * 2
                            shared.seek(dice.randrange(1000))

        assert in_threads(10, read) == []


@pytest.mark.parametrize("seed", range(5))
def test_closing_while_threads_read(seed: int, small_image: Path) -> None:
    """Each call gives right data or a ValueError, and none waits for ever."""
    before = left_over()
    image = mystfuse.Image(small_image, trust="self")
    closing = threading.Timer(0.02 * seed, image.close)
    closing.start()
    ended = []

    def read(number: int) -> None:
        while True:
            try:
                assert image.read_bytes("link") == DATA
                assert len(list(image.scandir("/"))) > 5
            except ValueError as error:
                assert str(error) == f"{small_image} is closed"
                ended.append(number)
                return

    assert in_threads(6, read) == [] and len(ended) == 6
    closing.join()
    image.close()
    assert image.closed
    wait_until(lambda: left_over() <= before)


def test_several_threads_may_close_it(small_image: Path) -> None:
    image = mystfuse.Image(small_image, trust="self")
    assert in_threads(8, lambda number: image.close()) == []
    assert image.closed


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_nothing_is_left_of_many_images(is_encrypted: bool, small_image: Path, encrypted: Path) -> None:
    path, given = (encrypted, {"passphrase": PASSPHRASE}) if is_encrypted else (small_image, {})

    def use(count: int) -> None:
        for _ in range(count):
            with mystfuse.Image(path, trust="self", **given) as image, image.open("link") as file:  # type: ignore[arg-type]
                assert image.read_bytes("/hello.txt") == b"hello\n"
                for _ in image.walk("/"):
                    break
                file.close()
            with suppress(mystfuse.MystfuseError):
                mystfuse.Image(path, trust="self", key=b"wrong")
            with suppress(mystfuse.NotTrusted):
                mystfuse.Image(path, passphrase="x" if is_encrypted else None)

    use(1)
    before = left_over()
    use(3 if is_encrypted else 20)
    wait_until(lambda: left_over() <= before)


def test_the_key_derivation_ends_also_when_no_thread_begins(encrypted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_over()

    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("mystfuse.system.loop_thread.start_new_thread", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            mystfuse.Image(encrypted, trust="self", passphrase=PASSPHRASE)
        with pytest.raises(RuntimeError, match="start new thread"):
            asyncio.run(_open(encrypted))
    wait_until(lambda: left_over() <= before)


async def _open(path: Path) -> None:
    async with mystfuse.open_image(path, trust="self", passphrase=PASSPHRASE):
        pass


def test_the_key_derivation_begins_before_the_thread(encrypted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork in a process of several threads may leave the child a lock that nobody gives back."""
    events: list[str] = []
    fork = os.fork

    def recorded() -> int:
        events.append(f"fork by {threading.get_ident()}")
        return fork()

    monkeypatch.setattr(derivation_process.os, "fork", recorded)
    with mystfuse.Image(encrypted, trust="self", passphrase=PASSPHRASE) as image:
        assert image.exists("/")
    assert events == [f"fork by {threading.get_ident()}"]


def test_an_image_that_nothing_refers_to_is_closed(small_image: Path) -> None:
    before = left_over()
    image: Any = mystfuse.Image(small_image, trust="self")
    path = image / "hello.txt"
    del image
    gc.collect()
    assert path.read_text() == "hello\n"
    with pytest.warns(ResourceWarning, match=r"unclosed <mystfuse\.Image '.*'>"):
        del path
        gc.collect()
    wait_until(lambda: left_over() <= before)
    # In a circle, collected in whichever thread.
    circle: list[Any] = [mystfuse.Image(small_image, trust="self")]
    circle.append(circle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del circle
        in_threads(1, lambda number: gc.collect() and None)
    wait_until(lambda: left_over() <= before)


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
@pytest.mark.parametrize(
    "end",
    [
        "pass", "sys.exit(3)", "raise SystemExit", "1 / 0", "os.fork() or sys.exit(4); os.wait()",
        "threading.Thread(target=image.read_bytes, args=['/link']).start()", "image.close(); os.fork()",
        "list(image.walk('/')); walk = image.walk('/'); next(walk)",
    ],
)  # fmt: skip
def test_a_program_ends_without_closing(end: str, kind: str, small_image: Path, encrypted: Path) -> None:
    path, given = (encrypted, f"passphrase={PASSPHRASE!r}") if kind == "encrypted" else (small_image, "")
    code = f"""
import os, sys, threading, mystfuse
image = mystfuse.Image({str(path)!r}, trust="self", {given})
file = image.open("link", "rb")
assert file.read(1) == b"\\0"
{end}
"""
    started = time.monotonic()
    result = run(sys.executable, "-X", "dev", "-W", "ignore", "-c", code, check=False)
    assert time.monotonic() - started < 60
    expected = {"sys.exit(3)": 3, "1 / 0": 1}.get(end, 0)
    assert (result.returncode, result.stdout) == (expected, "")
    assert ("ZeroDivisionError" in result.stderr) if end == "1 / 0" else result.stderr == ""


def test_a_child_has_to_open_it_itself(small_image: Path) -> None:
    with mystfuse.Image(small_image, trust="self") as image:
        file = image.open("link", "rb")
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                for use in (lambda: image.stat("/"), lambda: file.read(1), lambda: next(image.walk("/"))):
                    with pytest.raises(ValueError, match="before a fork: open it again"):
                        use()
                image.close()
                with mystfuse.Image(small_image, trust="self") as own:
                    os.write(writer, own.read_bytes("hello.txt"))
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert pipe.read() == b"hello\n"
        os.waitpid(pid, 0)
        # The parent's goes on.
        assert file.read() == DATA


def interrupt_soon() -> None:
    """^C, once the main thread waits for storage."""
    with suppress(BaseException):
        wait_until(lambda: HangingSource.waiting > 0)
    time.sleep(0.1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("what", ["read", "extract", "open"])
def test_an_interrupt_ends_a_call_at_once(what: str, small_image: Path, tmp_path: Path) -> None:
    before = left_over()
    with hanging_storage() as storage:
        image = mystfuse.Image(small_image, trust="self")
        assert image.read_bytes("/hello.txt") == b"hello\n"
        storage.answers.clear()
        interrupter = threading.Thread(target=interrupt_soon)
        interrupter.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            match what:
                case "read":
                    image.read_bytes("link")
                case "extract":
                    image.extract("/", tmp_path / "copy")
                case "open":
                    mystfuse.Image(small_image, trust="self")
        assert time.monotonic() - started < 10
        interrupter.join()
        assert os.listdir(tmp_path) == []
        storage.answers.set()
        # It can be used further.
        assert image.read_bytes("link") == DATA
        image.close()
    wait_until(lambda: left_over() <= before)


def interrupted_at(at: int, action: Callable[[], None]) -> bool:
    """Run ``action`` with a KeyboardInterrupt at the n-th instruction of the modules that wait; returns whether there
    were so many."""
    names = ("api.image", "api.opening", "system.blocking", "system.loop_thread")
    ours = {sys.modules[f"mystfuse.{name}"].__file__ for name in names}
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in ours:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count >= at


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_every_place_leave_nothing(small_image: Path) -> None:
    def use() -> None:
        with mystfuse.Image(small_image, trust="self") as image:
            assert image.read_bytes("hello.txt") == b"hello\n"

    use()
    before = left_over()
    at, places = 1, 0
    while interrupted_at(at, use):
        wait_until(lambda: gc.collect() >= 0 and left_over() <= before)
        # Not at each: there are a thousand.
        at += 5
        places += 1
    assert places > 50


def test_event_loops_can_use_it_too(small_image: Path) -> None:
    """It blocks them, but works: in a task, and in a thread of theirs."""

    async def in_trio() -> None:
        with mystfuse.Image(small_image, trust="self") as image:
            assert image.read_bytes("link") == DATA
            assert await trio.to_thread.run_sync(image.read_bytes, "link") == DATA
            async with mystfuse.open_image(small_image, trust="self") as other:
                assert await other.read_file("link") == DATA

    async def in_asyncio() -> None:
        with mystfuse.Image(small_image, trust="self") as image:
            assert image.read_bytes("link") == DATA
            assert await asyncio.to_thread(image.read_bytes, "link") == DATA
            async with mystfuse.open_image(small_image, trust="self") as other:
                assert await other.read_file("link") == DATA

    trio.run(in_trio)
    asyncio.run(in_asyncio())


def test_a_call_within_its_own_loop_does_not_wait_for_itself(small_image: Path) -> None:
    with mystfuse.Image(small_image, trust="self") as image:
        caught: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            try:
                image.stat("/")
            except RuntimeError as error:
                caught.append(error)
            done.set()

        image.thread.post(call)
        assert done.wait(10)
        assert [str(error) for error in caught] == [f"{small_image} cannot be used by its own event loop"]
        assert image.exists("/")


def test_the_programs_output_is_all_that_is_seen(small_image: Path) -> None:
    """No warning of Python's, however strict: threads, loops and files are ended in order."""
    code = (
        "import asyncio, sys, mystfuse\n"
        "with mystfuse.Image(sys.argv[1], trust='self') as image, (image / 'link').open('rb') as file: file.read()\n"
        "async def main():\n"
        "    async with mystfuse.open_image(sys.argv[1], trust='self') as image:\n"
        "        async with await image.open('link') as file: print(len(await file.read()))\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, small_image],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONASYNCIODEBUG": "0"},
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{len(DATA)}\n", "")
