"""The limit on opening an encrypted image: for all key slots of a header together, in a process that we can end."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mystfuse.cli.key_options import parse_kdf_limit
from mystfuse.cli.mount_options import parse_mount_options
from mystfuse.crypto.derivation_process import Deriver
from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret
from mystfuse.errors import FormatError, MystfuseError, UsageError
from mystfuse.formats.luks import Argon2, LuksHeader, Pbkdf2
from mystfuse.image.keys import Keys
from mystfuse.image.unlock import unlock
from mystfuse.system.daemon_users import FIRST_OWN_USER
from tests.image.test_unlock import KEY, PASSPHRASE, locked, open_with
from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice
from tests.support.mounts import mounted

GIB = 1 << 30
ENDLESS = {"hash_name": "sha256", "salt": "00" * 32, "iterations": (1 << 31) - 1}
"""Iterations for about half an hour."""


def derive(limit: KdfLimit, parameters: dict[str, Any], times: int = 1) -> None:
    """Ask a deriver, and end it."""

    async def main() -> None:
        try:
            with trio.fail_after(20):
                for _ in range(times):
                    await deriver.derive(parameters, Secret.copy_of(b"secret"), 64)
        finally:
            await deriver.close()

    deriver = Deriver(limit)
    trio.run(main)


def with_slots(count: int, kdf: Argon2 | Pbkdf2) -> tuple[LuksHeader, bytes]:
    """An image whose key derivation opens this many slots."""
    header, content = locked()
    slots = tuple(replace(header.keyslots[0], number=number, kdf=kdf) for number in range(count))
    return replace(header, keyslots=slots), content


@pytest.mark.parametrize(
    ("count", "kdf", "told"),
    [
        (2, Argon2("argon2id", b"somesalt", 4, 4 << 20, 4), "trying 2 key slots would take about 3. s and 4096 MiB"),
        (
            1,
            Argon2("argon2id", b"somesalt", 1, (1 << 20) + 1, 4),
            "trying 1 key slot would take about 1 s and 1024 MiB",
        ),
        (32, Argon2("argon2id", b"somesalt", 4, 1 << 20, 4), "trying 32 key slots would take about 1.. s and 1024 MiB"),
        (8, Pbkdf2("sha256", b"somesalt", 25_000_000), "trying 8 key slots would take about 240 s and 0 MiB"),
    ],
)
def test_a_header_that_would_cost_too_much_is_refused_at_once(count: int, kdf: Argon2 | Pbkdf2, told: str) -> None:
    started = time.process_time()
    with pytest.raises(
        FormatError, match=rf"{told} of memory, more than 60:1024M allows \(--kdf-limit .* does\)"
    ) as caught:
        open_with(with_slots(count, kdf), passphrase=PASSPHRASE)
    assert time.process_time() - started < 1
    # The stated costs are enough: the test starts no derivation, for the memory that they state does not exist.
    (limit,) = re.findall(r"--kdf-limit (\S+) does", str(caught.value))
    keys = Keys(passphrase=Secret.copy_of(PASSPHRASE), limit=parse_kdf_limit(limit))
    assert keys.limit.memory >= kdf.memory_size and keys.limit.seconds >= count * kdf.seconds(64)
    # The master key needs none of the slots.
    open_with(with_slots(count, kdf), key=KEY)


def test_a_derivation_that_takes_longer_than_it_should_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # With so many processors the clock ends it before the limit of processor time does.
    monkeypatch.setattr(os, "cpu_count", lambda: 10_000)
    started = time.monotonic()
    with pytest.raises(MystfuseError, match=r"took longer than 0\.3 s, and was ended \(--kdf-limit"):
        derive(KdfLimit(0.3), ENDLESS)
    assert time.monotonic() - started < 5


def test_parameters_that_openssl_refuses_are_an_error() -> None:
    with pytest.raises(MystfuseError, match="OpenSSL derives no key by these parameters"):
        derive(KdfLimit(0.5), {**ENDLESS, "hash_name": "md4"})


def test_the_time_is_for_all_derivations_together() -> None:
    once = {**ENDLESS, "iterations": 100_000}
    started = time.monotonic()
    derive(KdfLimit(math.inf), once)
    one = time.monotonic() - started
    with pytest.raises(MystfuseError, match="took longer than"):
        derive(KdfLimit(2 * one), once, times=20)


def test_a_derivation_that_takes_more_memory_than_it_should_fails() -> None:
    parameters = {"variant": "argon2id", "salt": "00" * 16, "time": 1, "cpus": 4}
    derive(KdfLimit(60, 64 << 20), {**parameters, "memory": 64 << 10})
    with pytest.raises(MystfuseError, match="more memory than there is, or than --kdf-limit allows"):
        derive(KdfLimit(60, 64 << 20), {**parameters, "memory": 1 << 20})


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
def test_giving_up_leaves_no_process(caplog: pytest.LogCaptureFixture) -> None:
    header, content = with_slots(1, Pbkdf2("sha256", b"somesalt", 45_000_000))
    keys = Keys(passphrase=Secret.copy_of(PASSPHRASE))
    children: list[int] = []
    # Children that other tests have started.
    before = child_processes()

    async def main() -> None:
        with trio.move_on_after(0.3) as scope:
            await unlock(MemoryDevice(content), header, keys, lambda text, total: noting(children))
        assert scope.cancelled_caught

    started = time.monotonic()
    trio.run(main)
    assert time.monotonic() - started < 5
    assert keys.deriver is None
    assert "trying 1 key slot will take up to about 55 s and 0 MiB of memory" in caplog.text
    assert set(children) - before
    assert not child_processes() & set(children) - before
    assert keys.passphrase is not None and keys.passphrase.view == bytes(len(PASSPHRASE))


def child_processes() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


class noting:  # noqa: N801  # a context manager
    """Records the children of this process while the block runs."""

    def __init__(self, children: list[int]) -> None:
        self._children = children

    def __enter__(self) -> Callable[[int], None]:
        return lambda count: None

    def __exit__(self, *_: object) -> None:
        self._children += child_processes()


def test_the_process_holds_nothing_and_shows_nothing() -> None:
    before = child_processes()
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    with open(os.devnull) as held:
        try:
            # The caller of the tests may allow no core dumps anyway.
            resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
            deriver = Deriver(KdfLimit(60))
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, limits)
        (pid,) = child_processes() - before
        process = Path(f"/proc/{pid}")
        try:
            deadline = time.monotonic() + 10
            while "\nSeccomp:\t2\n" not in (status := (process / "status").read_text()):
                assert time.monotonic() < deadline, status
                time.sleep(0.01)
            while len(links := [os.readlink(link) for link in (process / "fd").iterdir()]) != 4:
                assert time.monotonic() < deadline, links
                time.sleep(0.01)
            assert sorted(link.partition(":")[0] for link in links) == ["/dev/null"] * 3 + ["socket"]
            shown = (process / "limits").read_text()
            assert re.search(r"Max cpu time +\d+ +\d+ +seconds", shown)
            assert re.search(r"Max address space +\d+ +\d+ +bytes", shown)
            assert re.search(r"Max core file size +[01] ", shown)
            assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
            assert int(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)[0]) >= FIRST_OWN_USER
        finally:
            trio.run(deriver.close)
        assert held.fileno() >= 0
    assert child_processes() == before


def test_others_of_the_same_user_do_not_look_into_the_process() -> None:
    """/proc/PID of a process that is not dumpable belongs to root."""
    script = (
        "import os, time; from mystfuse.crypto.derivation_process import Deriver\n"
        "from mystfuse.crypto.kdf_limit import KdfLimit; "
        "deriver = Deriver(KdfLimit()); path = f'/proc/{deriver._pid}/environ'; deadline = time.monotonic() + 10\n"
        "while os.stat(path).st_uid and time.monotonic() < deadline: time.sleep(0.01)\n"
        "print(os.geteuid(), os.stat('/proc/self/environ').st_uid, os.stat(path).st_uid)"
    )
    user: dict[str, Any] = {} if os.geteuid() else {"user": 65534, "group": 65534, "extra_groups": []}
    result = run(sys.executable, "-c", script, cwd="/", **user)
    uid = 65534 if user else os.geteuid()
    assert result.stdout == f"{uid} {uid} 0\n"


def test_a_daemon_has_no_such_process_once_it_serves(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    assert in_process("mkext2", "--encrypt", tmp_path / "key", small_tree, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount", "--key-file", tmp_path / "key") as mountpoint:
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        daemons = []
        for process in Path("/proc").iterdir():
            # Other processes end meanwhile.
            with suppress(OSError):
                if process.name.isdigit() and str(tmp_path) in (process / "cmdline").read_text(errors="replace"):
                    daemons.append(process)
        states = [(process / "stat").read_text().rpartition(")")[2].split()[0] for process in daemons]
        assert len(daemons) == 2, "the daemon and its keeper"
        assert "Z" not in states


def test_the_limit_is_an_option(small_tree: Path, tmp_path: Path) -> None:
    key, passphrase, image = tmp_path / "key", tmp_path / "passphrase", tmp_path / "image"
    key.write_bytes(os.urandom(64))
    passphrase.write_text("correct horse battery staple\n")
    for path in key, passphrase:
        path.chmod(0o600)
    options = ("--encrypt", key, "--passphrase-file", passphrase)
    assert in_process("mkext2", *options, small_tree, image).returncode == 0
    for limit, status in (("0.1", 6), ("0.1:2G", 6), ("0:1k", 0), ("60", 0)):
        result = in_process("verify", f"--kdf-limit={limit}", "--passphrase-file", passphrase, image)
        assert result.returncode == status, (limit, result)
        assert ("--kdf-limit" in result.stderr) == (status != 0)
    for command in (["ls", image], ["exec", image, "/bin/true"], ["mount", image, tmp_path]):
        for wrong in ("", "x", "-1", "1:", "1:2X", "1,2", "-0", "1e-400", "6e1", "nan", "inf", " 1", "1_0", "\u0661"):
            result = in_process(command[0], f"--kdf-limit={wrong}", *command[1:])
            assert result.returncode == 2, result
            assert "is not SECONDS or SECONDS:SIZE" in result.stderr


def test_the_limit_is_a_mount_option_too() -> None:
    given: dict[str, Any] = {}
    assert parse_mount_options("kdf_limit=1.5:2G", given) == frozenset()
    assert given == {"kdf_limit": KdfLimit(1.5, 2 * GIB)}
    with pytest.raises(UsageError, match="kdf_limit=x"):
        parse_mount_options("kdf_limit=x", {})
    for limit in (KdfLimit(), KdfLimit(math.inf, 5 << 20), KdfLimit(0.25, 3 * GIB)):
        assert parse_kdf_limit(str(limit)) == limit
