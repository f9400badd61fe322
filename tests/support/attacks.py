"""A root file system with a program that attacks the host, and how to run it under ``exec``."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from mystfuse.system.syscall_numbers import syscall_numbers
from tests.support.commands import mystfuse, run

NUMBERS = syscall_numbers(platform.machine())

needs_filter = pytest.mark.skipif(not NUMBERS, reason=f"no filter of system calls on {platform.machine()}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it is root who has to be contained")

ATTACK = r"""
/* attack call NUMBER [ARGUMENT...]...: makes each system call (calls are separated by "-") and prints its errno;
 * attack write PATH...: opens each for writing; attack abstract NAME: connects. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <stddef.h>

static long argument(const char *text)
{
    return text[0] == '=' ? (long)(text + 1) : (long)strtoull(text, NULL, 0);
}

int main(int count, char **words)
{
    if (!strcmp(words[1], "call")) {
        for (int at = 2; at < count; at++) {
            long number = argument(words[at++]), given[6] = {0};
            for (int index = 0; at < count && strcmp(words[at], "-"); at++)
                given[index++] = argument(words[at]);
            errno = 0;
            long result = syscall(number, given[0], given[1], given[2], given[3], given[4], given[5]);
            printf("%ld %d\n", number, result == -1 ? errno : 0);
            fflush(stdout);
        }
    } else if (!strcmp(words[1], "write")) {
        for (int at = 2; at < count; at++)
            printf("%s %d\n", words[at], open(words[at], O_WRONLY | O_NONBLOCK) < 0 ? errno : 0);
    } else {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strcpy(address.sun_path + 1, words[2]);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(words[2]);
        printf("%d\n", connect(fd, (struct sockaddr *)&address, length) ? errno : 0);
    }
    return 0;
}
"""
APPLETS = (
    "sh",
    "cat",
    "chown",
    "find",
    "id",
    "ls",
    "mkdir",
    "mknod",
    "readlink",
    "sleep",
    "stat",
    "wc",
    "echo",
    "sort",
    "true",
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of busybox, ``attack``, and a file of another user. Tests must not write to it."""
    work = tmp_path_factory.mktemp("contained")
    root = work / "tree"
    for name in "bin", "dev", "proc":
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (work / "attack.c").write_text(ATTACK)
    run("gcc", "-static", "-o", root / "bin/attack", work / "attack.c")
    (root / "of-somebody").write_text("private\n")
    (root / "of-somebody").chmod(0o600)
    os.chown(root / "of-somebody", 1234, 5678)
    wide = bytearray((root / "bin/attack").read_bytes())
    wide[4] = 1  # ELFCLASS32
    wide[18:20] = {"x86_64": 3, "aarch64": 40}.get(platform.machine(), 0).to_bytes(2, "little")
    (root / "bin/narrow").write_bytes(wide)
    (root / "bin/narrow").chmod(0o755)
    assert mystfuse("mkext2", root, work / "root.img").returncode == 0
    return work / "root.img"


def said(image: Path, *command: str, options: tuple[str, ...] = ()) -> str:
    result = mystfuse("exec", *options, image, *command, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def calls(image: Path, *attempts: tuple[str | int, ...], options: tuple[str, ...] = ()) -> list[int]:
    """The errno of each call; a call is a name with arguments."""
    words: list[str] = []
    for name, *arguments in attempts:
        words += [str(NUMBERS[str(name)]), *map(str, arguments), "-"]
    lines = said(image, "attack", "call", *words, options=options).splitlines()
    assert len(lines) == len(attempts)
    return [int(line.split()[1]) for line in lines]
