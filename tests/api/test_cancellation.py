"""Tasks cancelled at every point: their mounts and images are ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import mystfuse
from mystfuse.api import mount as mounting
from mystfuse.errors import MountError
from mystfuse.mounting.mount_table import Mount, find_mount
from mystfuse.mounting.unmount import BusyError
from tests.support.cancelled_mounts import MOUNT, Command, Machine, processes_naming
from tests.support.commands import wait_until
from tests.support.left_over import left_over

Block = Callable[[], Coroutine[Any, Any, None]]


def run_trio(block: Block, at: int, when: str) -> tuple[int, bool]:
    """Run it, cancelled before or after its task's step ``at``; returns the number of steps, and whether it ran to its
    end."""
    steps, ended = 0, False
    scope = trio.CancelScope()

    class Canceller(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            if task.name == "the block":
                steps += 1
                if when == "before" and steps == at:
                    scope.cancel()

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name == "the block" and when == "after" and steps == at:
                scope.cancel()

    async def run() -> None:
        nonlocal ended
        with scope:
            await block()
            ended = True

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, name="the block")

    trio.run(main, instruments=[Canceller()])
    return steps, ended


def run_asyncio(block: Block, at: int, when: str) -> tuple[int, bool]:
    """The same under asyncio."""
    steps = 0

    @types.coroutine
    def counted(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        nonlocal steps
        action: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
        while True:
            steps += 1
            task = asyncio.current_task()
            assert task is not None
            if steps == at and when == "before":
                task.cancel()
            try:
                waited_for = action()
            except StopIteration:
                return
            if steps == at and when == "after":
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield waited_for
                action = lambda: coroutine.send(None)  # noqa: E731
            except BaseException as error:
                action = lambda error=error: coroutine.throw(error)  # type: ignore[misc]  # noqa: E731

    async def main() -> bool:
        async def run() -> None:
            await counted(block())

        task = asyncio.create_task(run())
        await asyncio.wait([task], timeout=60)
        with suppress(asyncio.CancelledError):
            task.result()
            return True
        return False

    ended = asyncio.run(main())
    return steps, ended


LOOPS = {"trio": run_trio, "asyncio": run_asyncio}


def at_every_point(loop: str, block: Block, check: Callable[[], None]) -> int:
    """Run the block cancelled at its first point, at its second, and so on, until it runs to its end uncancelled."""
    for when in ("before", "after"):
        at = 0
        while True:
            at += 1
            steps, ended = LOOPS[loop](block, at, when)
            check()
            if steps < at:
                assert ended
                break
            assert at < 100
    return at


@pytest.mark.parametrize("loop", LOOPS)
def test_a_mount_cancelled_at_every_point(loop: str, machine: Machine) -> None:
    bodies = 0
    # Kept here: a mount object that is garbage-collected unmounts anyway.
    mounts: list[mystfuse.mount] = []

    async def block() -> None:
        nonlocal bodies
        mounts.append(mystfuse.mount("image", "/m", trust="self"))
        async with mounts[-1]:
            assert machine.mount is MOUNT
            bodies += 1
            for _ in range(2):
                await (asyncio.sleep(0) if loop == "asyncio" else trio.lowlevel.checkpoint())
            if loop == "asyncio":
                await asyncio.sleep(0)
            bodies += 1

    def check() -> None:
        assert (machine.mount, machine.commands) == (None, 0)

    assert at_every_point(loop, block, check) > 4
    # Cancelled before, within and after the body, each at least once.
    assert bodies > 4


@pytest.mark.parametrize("loop", LOOPS)
def test_a_mount_cancelled_between_mounting_and_its_report(loop: str, machine: Machine) -> None:
    machine.hangs_when_mounted = True
    mount = mystfuse.mount("image", "/m", trust="self")

    async def block() -> None:
        async with mount:
            raise AssertionError("this is never begun")

    async def in_trio() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block)
            while machine.mount is None:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    async def in_asyncio() -> None:
        task = asyncio.create_task(block())
        while machine.mount is None:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    trio.run(in_trio) if loop == "trio" else asyncio.run(in_asyncio())
    assert (machine.mount, machine.commands) == (None, 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_end_of_a_cancelled_block_is_not_cancelled(loop: str, machine: Machine) -> None:
    """The end waits for the slow unmount, is cancelled again meanwhile, and raises the original exception."""
    machine_unmount = machine.unmount_and_wait

    def slowly(path: str, lazy: bool, timeout: float) -> None:
        time.sleep(0.05)
        machine_unmount(path, lazy, timeout)

    mounting.unmount_and_wait = slowly  # type: ignore[assignment]  # the fixture puts it back

    async def in_trio() -> None:
        with trio.move_on_after(0.02) as scope:
            async with mystfuse.mount("image", "/m", trust="self"):
                scope.cancel()
        assert machine.mount is None

    async def in_asyncio() -> None:
        async def block() -> None:
            async with mystfuse.mount("image", "/m", trust="self"):
                pass

        task = asyncio.create_task(block())
        while machine.mount is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert machine.mount is None

    trio.run(in_trio) if loop == "trio" else asyncio.run(in_asyncio())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_failure_to_unmount_is_reported(loop: str, machine: Machine) -> None:
    async def block() -> None:
        async with mystfuse.mount("image", "/m", trust="self"):
            pass

    for failure in (BusyError, MountError):
        machine.failure = failure
        with pytest.raises(failure, match="as ordered"):
            trio.run(block) if loop == "trio" else asyncio.run(block())
        assert machine.mount is None and machine.lazily
        machine.lazily = 0


def test_a_mount_of_another_program_is_not_unmounted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Mount("/m", "0:100", "other", 0)
    with mystfuse.mount("image", "/m", trust="self"):
        machine.mount = other
    assert machine.mount is other
    # Neither a mount that was there before, when mounting fails, nor one that has appeared meanwhile.
    latest = Mount("/m", "0:101", "other", 0)

    def fail(self: Command, arguments: object, descriptors: object = ()) -> str:
        machine.mount = coming
        raise MountError("is already mounted there")

    monkeypatch.setattr(Command, "run", fail)
    for coming in other, latest:
        with pytest.raises(MountError, match="already"), mystfuse.mount("image", "/m", trust="self"):
            pass
        gc.collect()
        assert machine.mount is coming


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("loop", LOOPS)
def test_real_mounts_cancelled_after(delay: float, loop: str, small_image: Path, mountpoint: Path) -> None:
    async def block() -> None:
        async with mystfuse.mount(small_image, mountpoint, trust="self"):
            await (asyncio.sleep(60) if loop == "asyncio" else trio.sleep(60))

    async def in_trio() -> None:
        with trio.move_on_after(delay):
            await block()

    async def in_asyncio() -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(block(), delay or 0.001)

    started = time.monotonic()
    trio.run(in_trio) if loop == "trio" else asyncio.run(in_asyncio())
    assert time.monotonic() - started < 30
    assert find_mount(str(mountpoint)) is None
    # The keeper ends when its daemon has ended.
    wait_until(lambda: processes_naming(mountpoint) == [])


def test_a_program_that_forgets_the_end(small_image: Path, mountpoint: Path) -> None:
    """At the program's end nothing is left; a process that it has forked unmounts nothing."""
    code = (
        "import os, sys, mystfuse\n"
        "m = mystfuse.mount(*sys.argv[1:], trust='self'); m.__enter__()\n"
        "if not os.fork(): sys.exit(0)\n"
        "os.wait()\nassert (m.mountpoint / 'hello.txt').exists()\n"
    )
    subprocess.run([sys.executable, "-c", code, small_image, mountpoint], check=True, timeout=60)
    assert find_mount(str(mountpoint)) is None
    # The keeper ends when its daemon has ended.
    wait_until(lambda: processes_naming(mountpoint) == [])


def test_a_directory_that_is_left_meanwhile(
    small_image: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mountpoint.parent)
    with mystfuse.mount(small_image, mountpoint.name, trust="self") as m:
        os.chdir("/")
        assert m.status()["trust"] == "self"
    assert find_mount(str(mountpoint)) is None


def test_a_process_that_does_not_end_is_ended_by_force(
    small_image: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped (SIGSTOP) like a process that hangs, together with the daemon that it starts."""
    monkeypatch.setattr("mystfuse.system.own_command._PATIENCE", 0.2)

    async def freeze(scope: trio.CancelScope) -> None:
        # The process that mounts, the daemon, and its keeper.
        while len(frozen := processes_naming(mountpoint)) < 3:
            await trio.sleep(0.001)
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        scope.cancel()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze, nursery.cancel_scope)
            async with mystfuse.mount(small_image, mountpoint, trust="self"):
                await trio.sleep(60)

    try:
        trio.run(main)
        wait_until(lambda: processes_naming(mountpoint) == [])
        assert find_mount(str(mountpoint)) is None
    finally:
        for pid in processes_naming(mountpoint):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_an_image_opened_and_cancelled_at_every_point(
    loop: str, is_encrypted: bool, small_image: Path, small_tree: Path, tmp_path: Path
) -> None:
    image, key = small_image, None
    if is_encrypted:
        key = bytes(range(64))
        (tmp_path / "key").touch(mode=0o600)
        (tmp_path / "key").write_bytes(key)
        image = tmp_path / "secret"
        mystfuse.make_image(small_tree, image, options=[f"--encrypt={tmp_path / 'key'}"])
    read = 0

    async def block() -> None:
        nonlocal read
        async with mystfuse.open_image(image, trust="self", key=key) as tree:
            assert await tree.read_file("/hello.txt") == b"hello\n"
            assert {entry.name async for entry in tree.scandir("/")} >= {"hello.txt", "sub"}
            read += 1

    LOOPS[loop](block, 0, "before")
    before = left_over()

    def check() -> None:
        wait_until(lambda: left_over() <= before)

    assert at_every_point(loop, block, check) > 5 and read > 2
