"""Memory for secrets: wiped, locked, left out of core dumps and of repr."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from mystfuse.crypto.secret import Secret
from mystfuse.image.keys import Keys
from tests.support.dm_crypt import randbytes

ROOT = Path(__file__).parents[2]


def test_a_secret_is_zeros_until_it_is_written_and_after_it_is_wiped() -> None:
    secret = Secret(5000)
    assert len(secret) == len(secret.view) == 5000
    assert secret.view == bytes(5000)
    secret.view[:] = randbytes(5000)
    view = secret.view
    secret.wipe()
    assert view == bytes(5000)
    # It can be used again.
    secret.view[:3] = b"abc"
    assert bytes(secret.view[:4]) == b"abc\0"
    secret.lock()
    assert bytes(secret.view[:4]) == b"abc\0"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 64, 4096, 4097])
def test_a_copy_is_a_copy(kind: type, size: int) -> None:
    original = bytearray(randbytes(size))
    secret = Secret.copy_of(kind(original))
    expected = bytes(original)
    original[:] = bytes(size)
    assert len(secret) == size and secret.view == expected


@pytest.mark.parametrize("size, limit", [(0, 10), (9, 10), (10, 10), (11, 10), (100_000, 99_999), (5, 0)])
def test_a_secret_is_read_up_to_the_limit(tmp_path: Path, size: int, limit: int) -> None:
    content = randbytes(size)
    (tmp_path / "key").write_bytes(content)
    with (tmp_path / "key").open("rb", buffering=0) as file:
        secret = Secret.read(file, limit)
        assert secret.view == content[:limit]
        assert file.read() == content[limit:]


def test_a_secret_is_read_from_a_pipe_that_gives_little_at_a_time() -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        for part in (b"cor", b"rect", b" ", b"horse"):
            os.write(writer, part)
            time.sleep(0.01)
        os.close(writer)

    with open(reader, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        fed = pool.submit(feed)
        assert Secret.read(file, 1000).view == b"correct horse"
        fed.result()


def test_a_secret_does_not_show_its_contents() -> None:
    secret = Secret.copy_of(b"correct horse")
    for shown in repr(secret), str(secret), f"{secret}", repr([secret]), repr(Keys(passphrase=secret)):
        assert "correct" not in shown and "horse" not in shown
        assert "636f72" not in shown
    assert "13" in repr(secret)


def test_a_child_shares_the_secret_and_can_end_it_for_both() -> None:
    secret = Secret.copy_of(b"correct horse")
    child = os.fork()
    if child == 0:
        seen = secret.view == b"correct horse"
        secret.wipe()
        os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert secret.view == bytes(13)


def test_secrets_are_left_out_of_core_dumps_and_locked() -> None:
    script = """
        import mmap, re
        from mystfuse.crypto.secret import Secret
        secret = Secret(3 * mmap.PAGESIZE)
        import ctypes
        address = ctypes.addressof(ctypes.c_char.from_buffer(secret.view))
        for area in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
            start, end = (int(text, 16) for text in area.split(" ", 1)[0].split("-"))
            if start <= address < end:
                print(re.search(r"VmFlags:(.*)", area)[1], "|", re.search(r"Locked: *(\\d+)", area)[1])
    """
    shown = subprocess.run(
        [sys.executable, "-c", dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    flags, locked = shown.split("|")
    assert "dd" in flags.split(), "it would be in a core dump"
    assert "sh" in flags.split(), "it is not shared with children"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= 1 << 20:
        assert "lo" in flags.split() and int(locked) >= 12, "it is not locked in memory"


def crash(tmp_path: Path, lines: str) -> tuple[str, int, list[str]]:
    """Run Python code that may dump core and that fails; returns its output, its wait status, and the files it left."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + dedent(lines)

    def allow_cores() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=directory, stdout=output, stderr=output, preexec_fn=allow_cores
        )
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return (tmp_path / "output").read_text(), status, [path.name for path in directory.iterdir()]


def test_a_hardened_process_says_so() -> None:
    script = """
        import ctypes, resource
        from mystfuse.crypto.secret import harden_process
        harden_process()
        print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    """
    before = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    assert subprocess.check_output([sys.executable, "-c", before], cwd=ROOT, text=True) == "1\n"
    shown = subprocess.check_output([sys.executable, "-c", dedent(script)], cwd=ROOT, text=True, timeout=60)
    assert shown == "(1, 1) 0\n"


@pytest.mark.parametrize("death", ["os.abort()", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_hardened_process_leaves_no_core(tmp_path: Path, death: str) -> None:
    hardened = "from mystfuse.crypto.secret import harden_process\nharden_process()\n"
    output, status, files = crash(tmp_path, f"import os, signal\n{hardened}{death}")
    assert os.WIFSIGNALED(status), output
    assert not os.WCOREDUMP(status) and files == []
    # A child inherits it.
    forked = (
        f"import os, signal\n{hardened}child = os.fork()\nif child: os._exit(os.WCOREDUMP(os.waitpid(child, 0)[1]))\n"
    )
    output, status, files = crash(tmp_path, forked + death)
    assert status == 0 and files == [], output
    # Without hardening, a core file is left.
    _, status, files = crash(tmp_path, f"import os, signal\n{death}")
    if not os.WCOREDUMP(status):
        pytest.skip("nothing dumps core here, hardened or not")
