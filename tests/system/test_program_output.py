"""Programs that are run for their output: bounded, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mystfuse.system.program_output import read_output
from tests.support.commands import wait_until
from tests.support.encrypted_images import on_terminal_of


def output_of(*command: str, size: int = 1000, timeout: float = 20) -> tuple[int, bytes]:
    buffer = bytearray(size)
    status, count = read_output(command, memoryview(buffer), timeout)
    return status, bytes(buffer[:count])


def is_running(pid: int) -> bool:
    """Not ended, and no zombie of another parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_and_status_are_the_programs() -> None:
    assert output_of("printf", "a\\nb\\0c") == (0, b"a\nb\0c")
    assert output_of("sh", "-c", "printf some; exit 7") == (7, b"some")
    assert output_of("sh", "-c", "kill -TERM $$") == (-signal.SIGTERM, b"")
    assert output_of("sh", "-c", "printf a; sleep 0.2; printf b; exec >&-; sleep 0.2; exit 3") == (3, b"ab")


def test_more_than_there_is_room_for_ends_it() -> None:
    started = time.monotonic()
    status, data = output_of("sh", "-c", "yes; sleep 100", size=100_000)
    assert (status, len(data)) == (-signal.SIGKILL, 100_000)
    assert output_of("head", "-c", "99999", "/dev/zero", size=100_000) == (0, bytes(99_999))
    assert time.monotonic() - started < 15


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    script = f"trap '' TERM INT HUP; sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; printf x; wait"
    with pytest.raises(TimeoutError):
        output_of("sh", "-c", script, timeout=1)
    assert 1 <= time.monotonic() - started < 10
    for name in "pid", "child":
        pid = int((tmp_path / name).read_text())
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]


def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    """As gpg starts its agent: with our pipe still open."""
    started = time.monotonic()
    assert output_of("sh", "-c", f"sleep 30 & echo $! > {tmp_path}/pid; echo secret") == (0, b"secret\n")
    assert time.monotonic() - started < 10
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


def test_what_is_not_there_or_no_program_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    before = sorted(os.listdir("/proc/self/fd"))
    for name, error in ("/no/such/program", FileNotFoundError), (str(tmp_path / "file"), PermissionError):
        with pytest.raises(error):
            output_of(name)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_us_kills_it_with_its_children(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "from mystfuse.system.program_output import read_output\n"
        f"read_output(['sh', '-c', 'sleep 1000 & echo $! > {tmp_path}/child; wait'], memoryview(bytearray(10)), 100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip() != "")
    process.send_signal(number)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    pid = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(pid))


PROGRAM = """
import os, sys, termios
from mystfuse.system.program_output import read_output
buffer = bytearray(100)
try:
    status, size = read_output(['sh', '-c', sys.argv[1]], memoryview(buffer), float(sys.argv[2]))
    print('got', status, bytes(buffer[:size]), flush=True)
except KeyboardInterrupt:
    print('interrupted', flush=True)
except TimeoutError:
    print('too long', flush=True)
echo = bool(termios.tcgetattr(0)[3] & termios.ECHO)
print('echo is', echo, 'foreground', os.tcgetpgrp(0) == os.getpgrp(), flush=True)
print('typed:', input('now we ask: '), flush=True)
"""


@pytest.mark.parametrize(
    ("script", "answers", "expected"),
    [
        (
            "printf 'PIN: ' >/dev/tty; read pin </dev/tty; echo \"pin $pin\"",
            [("PIN: ", "1234\n")],
            "got 0 b'pin 1234\\n'",
        ),
        ("printf 'PIN: ' >/dev/tty; read pin; echo \"pin $pin\"", [("PIN: ", "1234\n")], "got 0 b'pin 1234\\n'"),
        ("stty -echo; printf 'PIN: ' >/dev/tty; read pin </dev/tty; sleep 100", [("PIN: ", "1\n")], "too long"),
        ("stty -echo; printf 'PIN: ' >/dev/tty; read pin </dev/tty; echo x", [("PIN: ", "\x03")], "interrupted"),
    ],
    ids=["tty", "stdin", "time-out", "interrupt"],
)
def test_it_has_the_terminal_and_we_get_it_back(script: str, answers: list[tuple[str, str]], expected: str) -> None:
    timeout = "2" if "sleep" in script else "60"
    command = [sys.executable, "-c", PROGRAM, script, timeout]
    status, output = on_terminal_of(command, [*answers, ("now we ask: ", "thanks\n")])
    assert expected in output, output
    assert "echo is True foreground True" in output, output
    assert "typed: thanks" in output and status == 0, output


def test_a_program_in_the_background_does_not_take_the_terminal(tmp_path: Path) -> None:
    """Nor does it hang us: a read of the terminal stops it, and the time-out ends that."""
    code = (
        "import sys; from mystfuse.system.program_output import read_output\n"
        "try: read_output(['sh', '-c', 'read x </dev/tty'], memoryview(bytearray(10)), 1)\n"
        "except TimeoutError: open(sys.argv[1], 'w').write('too long')"
    )
    shell = f'set -m; {sys.executable} -c "$CODE" {tmp_path}/said & wait; printf \'done \'; read x; echo "[$x]"'
    status, output = on_terminal_of(["env", f"CODE={code}", "bash", "-c", shell], [("done ", "mine\n")])
    assert (tmp_path / "said").read_text() == "too long"
    assert "[mine]" in output and status == 0
