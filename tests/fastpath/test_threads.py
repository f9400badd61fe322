"""The C threads beside each other, and beside Python's commits; the kernel's part is the tests'."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections import Counter
from functools import partial

import pytest
import trio

from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.fuse.protocol import OUT_HEADER
from mystfuse.volume.volume import Volume
from tests.fuzz.targets_fastpath import malformed
from tests.support.fast_path_images import ADMIN, all_questions, make_file_system, make_tree
from tests.support.fast_paths import Answers, Pair, TreeImage, TreeOptions, add_tree, opened
from tests.support.fuse_answers import Kind, getattr_of, lookup, read, readdirplus, request
from tests.support.kernels import needs_native
from tests.support.stand_in_kernel import OF_LIBFUSE, OF_PYTHON, StandInKernel, in_threads

pytestmark = needs_native

SECONDS = float(os.environ.get("MYSTFUSE_FASTPATH_SECONDS", "3"))
KEPT = 500
"""Names that stay: a fast machine would run out of inodes."""
FILE_SIZE = 40_000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> TreeImage:
    directory = tmp_path_factory.mktemp("image")
    made = make_file_system(directory / "image", make_tree(directory / "tree"), 1024, 256)
    return add_tree(made, TreeOptions(data_block_size=1024, hash_block_size=1024))


# -- requests by many at once


async def test_each_request_is_answered_once_and_right(image: TreeImage) -> None:
    kernel = StandInKernel()
    async with opened(image, init=kernel.init) as pair:
        questions = (await all_questions(pair.volume, random.Random(1)))[:1500]
        expected = {question: await _expected(pair, question) for question in questions}
        answered: Counter[bool] = Counter()

        def ask(seed: int) -> None:
            noise = random.Random(seed)
            for _ in range(12):
                batch = noise.sample(questions, 60)
                for question, message in zip(batch, kernel.wait(kernel.send(batch)), strict=True):
                    error = -OUT_HEADER.unpack_from(message)[1]
                    is_pythons = error in (OF_LIBFUSE, OF_PYTHON)
                    answered[is_pythons] += 1
                    assert is_pythons or (error, message[16:]) == expected[question]

        has_ended = threading.Event()

        def drop() -> None:
            """Storage is waited for, too."""
            descriptor = os.open(image.path, os.O_RDONLY)
            while not has_ended.wait(0.01):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

        dropper = threading.Thread(target=drop)
        dropper.start()
        with kernel.serving(pair.fast_path):
            try:
                await trio.to_thread.run_sync(in_threads, [partial(ask, seed) for seed in range(4)])
            finally:
                has_ended.set()
                dropper.join()
            counts = pair.fast_path.counts()
        assert answered[False] > answered[True] > 0
        assert sum(counts.answered.values()) == answered[False]
        assert sum(counts.forwarded.values()) == answered[True]


async def _expected(pair: Pair, question: bytes) -> tuple[int, bytes] | None:
    try:
        answer = await pair.reference.answer(question)
    except Exception:
        return None
    return None if answer is None else (-OUT_HEADER.unpack_from(answer)[1], answer[16:])


async def test_requests_that_are_none(image: TreeImage) -> None:
    """Whatever comes, the threads go on, and each request that is one is answered."""
    kernel = StandInKernel()
    noise = random.Random(2)
    async with opened(image, init=kernel.init) as pair:

        def ask() -> None:
            for _ in range(40):
                kernel.send_raw([malformed(noise.randbytes(200)) for _ in range(20)])
                (message,) = kernel.wait(kernel.send([getattr_of(EXT2_ROOT_INO)]))
                assert OUT_HEADER.unpack_from(message)[1] == 0

        with kernel.serving(pair.fast_path):
            await trio.to_thread.run_sync(ask)


async def test_it_stops_while_requests_come(image: TreeImage) -> None:
    for _ in range(5):
        kernel = StandInKernel()
        async with opened(image, init=kernel.init) as pair:
            questions = [getattr_of(EXT2_ROOT_INO), lookup(EXT2_ROOT_INO, b"a"), readdirplus(EXT2_ROOT_INO, 0)] * 30
            with kernel.serving(pair.fast_path):
                await trio.to_thread.run_sync(kernel.send, questions)


# -- answers while Python commits


class Versions:
    """What has been committed: a reader must see no older state than before its question, and no newer one than when it
    has the answer."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self.has_ended = threading.Event()


async def test_answers_are_of_one_committed_state(image: TreeImage) -> None:
    """Each version of a file has other bytes, all alike, another time and another name beside it."""
    async with opened(image, 32 << 20) as pair:
        volume = pair.volume
        file = await volume.create(EXT2_ROOT_INO, b"file", stat.S_IFREG | 0o644, ADMIN)
        directory = await volume.create(EXT2_ROOT_INO, b"names", stat.S_IFDIR | 0o755, ADMIN)
        await _commit(volume, file.ino, directory.ino, 0)
        versions = Versions()
        checks = [partial(check, versions, Answers(pair.fast_path), file.ino, directory.ino)
                  for check in (_check_content, _check_content, _check_time, _check_names)]  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, in_threads, checks)
            noise = random.Random(4)
            try:
                with trio.move_on_after(SECONDS):
                    while True:
                        versions.begun += 1
                        await _commit(volume, file.ino, directory.ino, versions.begun)
                        versions.done = versions.begun
                        if not noise.randrange(4):
                            await _churn(volume, noise)
                        await trio.sleep(0)
            finally:
                versions.has_ended.set()
        assert versions.done > 20


async def _commit(volume: Volume, file: int, names: int, version: int) -> None:
    await volume.write(file, 0, version.to_bytes(8, "little") * (FILE_SIZE // 8), ADMIN)
    await volume.set_attributes(file, AttributeChanges(mtime_ns=version * 10**9), ADMIN)
    await volume.create(names, b"%d" % version, stat.S_IFREG, ADMIN)
    if version > KEPT:
        removed = await volume.remove(names, b"%d" % (version - KEPT), False)
        await volume.release(removed.ino)


async def _churn(volume: Volume, noise: random.Random) -> None:
    """Blocks come and go, so that the table and the arenas change their places."""
    other = await volume.create(EXT2_ROOT_INO, b"other", stat.S_IFREG, ADMIN)
    await volume.write(other.ino, 0, noise.randbytes(noise.randrange(600_000)), ADMIN)
    await volume.remove(EXT2_ROOT_INO, b"other", False)
    await volume.release(other.ino)


def _check_content(versions: Versions, answers: Answers, file: int, names: int) -> None:
    while not versions.has_ended.is_set():
        before = versions.done
        answer = answers.ask(read(file, 0, FILE_SIZE))
        after = versions.begun
        assert answer is not None
        content = answer[16:]
        assert content == content[:8] * (FILE_SIZE // 8), "of two states"
        assert before <= int.from_bytes(content[:8], "little") <= after


def _check_time(versions: Versions, answers: Answers, file: int, names: int) -> None:
    while not versions.has_ended.is_set():
        before = versions.done
        answer = answers.ask(getattr_of(file))
        after = versions.begun
        assert answer is not None
        # fuse_attr.mtime; a write sets it to now, for a moment.
        mtime = int.from_bytes(answer[16 + 16 + 32 : 16 + 16 + 40], "little")
        assert before <= mtime <= after or mtime > 10**9


def _check_names(versions: Versions, answers: Answers, file: int, names: int) -> None:
    while not versions.has_ended.is_set():
        before = versions.done
        present, absent = answers.ask(lookup(names, b"%d" % before)), answers.ask(lookup(names, b"%d" % (before + 2)))
        after = versions.begun
        # A directory of many blocks is Python's.
        assert present is None or present[16:24] != bytes(8)
        assert absent is None or absent[16:24] == bytes(8) or after >= before + 2


async def test_look_up_counts_of_many_threads(image: TreeImage) -> None:
    from mystfuse.kernels.native import lib

    async with opened(image) as pair:
        found = await pair.volume.lookup(EXT2_ROOT_INO, b"a")
        assert found is not None

        def work() -> None:
            answers = Answers(pair.fast_path)
            for _ in range(300):
                answers.ask(lookup(EXT2_ROOT_INO, b"a"))
                answers.ask(lookup(EXT2_ROOT_INO, b"a"))
                answers.ask(request(Kind.FORGET, found.ino, (1).to_bytes(8, "little")))

        await trio.to_thread.run_sync(in_threads, [work] * 4)
        assert lib.fastpath_count(pair.fast_path.handle, found.ino) == 1200
