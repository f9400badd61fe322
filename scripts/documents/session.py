"""Records docs/session.svg, the README's terminal session, from real commands on a real image.

    scripts/docs --record

Needs /dev/fuse. The commands run in a temporary directory, each in a shell of its own, one after the other.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PREPARATION = """
openssl genrsa -out private.pem -3 3072
openssl rsa -in private.pem -pubout -out public.pem
cp -r /usr/share/common-licenses licences
mkdir mnt
"""
"""The session's premises: a key pair, a directory, and a mountpoint."""

COMMANDS = (
    "mystfuse mkext2 --sign public.pem:private.pem licences app.img",
    "mystfuse app.img mnt --pubkey public.pem",
    "head -n 2 mnt/BSD",
    "rm mnt/GPL* && echo hello > mnt/hello",
    "mystfuse status mnt | grep -E 'explanation|verified|failed|overlay used'",
    "mystfuse commit --sign public.pem:private.pem mnt new.img",
    "mystfuse umount mnt",
    "mystfuse ls --pubkey public.pem app.img | grep -c GPL    # app.img has not changed",
    "mystfuse cat --pubkey public.pem new.img /hello          # new.img has the writes",
    "printf X | dd of=app.img bs=1 seek=5M conv=notrunc status=none",
    "mystfuse verify --pubkey public.pem app.img || echo \"exit status $?\"",
)  # fmt: skip

TIMEOUT_SECONDS = 60


def run_commands(directory: Path) -> list[tuple[str, str]]:
    """Run the session in an empty directory: each command, and its stdout and stderr.

    Raises subprocess.CalledProcessError when a command fails; in every case nothing stays mounted.
    """

    def shell(command: str) -> str:
        return subprocess.run(
            ["bash", "-c", command], cwd=directory, check=True, text=True, timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout  # fmt: skip

    shell(PREPARATION)
    try:
        return [(command, shell(command)) for command in COMMANDS]
    finally:
        if os.path.ismount(directory / "mnt"):
            subprocess.run(["mystfuse", "umount", "--lazy", directory / "mnt"], check=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        session = run_commands(Path(directory))
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    for command, output in session:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text(output.rstrip("\n")), end="\n" if output else "")
    Path(sys.argv[1]).write_text(console.export_svg(title="mystfuse"))


if __name__ == "__main__":
    main()
