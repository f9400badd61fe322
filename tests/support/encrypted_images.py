"""Secrets for encrypted images, commands that must be refused, and a terminal to type a passphrase on."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import sys
import time
from pathlib import Path

from tests.support.commands import mystfuse

USAGE, NOT_TRUSTED, INTEGRITY, KEY, FORMAT = 2, 3, 4, 5, 6
PHRASE = "open sesame, käse"
LUKS1_PAYLOAD = 4096 * 512
QUICK = 10
"""Seconds that a refusal may take on a busy machine: one derivation of an honest key slot takes about two."""


def write_secret(path: Path, data: bytes | str) -> Path:
    """A file that no other user can read: mystfuse warns of others."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refused(status: int, *arguments: str | Path, **kwargs: object) -> str:
    """Run a command that must fail with this status and one line of error; returns that line."""
    started = time.monotonic()
    result = mystfuse(*arguments, **kwargs)
    assert time.monotonic() - started < QUICK
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("mystfuse: ")
    return lines[0]


def hash_offset_of(image: bytes | bytearray) -> int:
    (hash_offset,) = struct.unpack_from("<Q", image, len(image) - 4096 + 16)
    return int(hash_offset)


def on_terminal(command: list[str | Path], dialogue: list[tuple[str, str]], timeout: float = 60) -> tuple[int, str]:
    """Run ``mystfuse`` on a terminal of its own, and answer each prompt, in this order. Returns status and output.

    Args:
        timeout: seconds until it is killed, if it waits for more answers.
    """
    typed = [(prompt, f"{answer}\n") for prompt, answer in dialogue]
    ended = on_terminal_of([sys.executable, "-m", "mystfuse", *command], typed, timeout)
    # As many are left as were not asked for.
    del dialogue[: len(dialogue) - len(typed)]
    return ended


def on_terminal_of(command: list[str | Path], dialogue: list[tuple[str, str]], timeout: float = 60) -> tuple[int, str]:
    """The same for any program; the answers are typed as they are."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], [str(word) for word in command])
    output, seen, deadline = "", 0, time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            if not data:
                break
            output += data.decode(errors="replace")
            if dialogue and dialogue[0][0] in output[seen:]:
                seen = len(output)
                # The prompt appears before the echo is off.
                time.sleep(0.3)
                os.write(terminal, os.fsencode(dialogue.pop(0)[1]))
        else:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)
    return status, output
