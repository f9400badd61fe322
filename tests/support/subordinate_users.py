"""An ordinary user to whom the system gives other users, in a mount namespace of its own, so that the machine's /etc
stays as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.support.commands import run

FIRST = 700000
"""The first subordinate user and group of ``GIVEN``."""
GIVEN = f"nobody:{FIRST}:65536\n"
"""As useradd(8) writes it."""
_SHOW = 'mount --bind "$1" /etc/subuid && mount --bind "$2" /etc/subgid && shift 2 && exec "$@"'


def with_ids(directory: Path, command: list[str], subuid: str = GIVEN, subgid: str | None = None) -> list[str]:
    """A command that runs ``command`` with these contents of /etc/subuid and /etc/subgid (None: the same).

    Args:
        directory: where to put the two files.
    """
    for name, text in (("subuid", subuid), ("subgid", subuid if subgid is None else subgid)):
        (directory / name).write_text(text)
    show = ["unshare", "--mount", "--propagation=private", "sh", "-c", _SHOW, "sh"]
    return [*show, str(directory / "subuid"), str(directory / "subgid"), *command]


class RootInside:
    """Runs ``mystfuse`` as that user.

    Args:
        directory: for files of its own.
        ordinary_user: the prefix of the fixture of that name.
    """

    def __init__(self, directory: Path, ordinary_user: list[str]) -> None:
        self.directory = directory
        self.ordinary_user = ordinary_user

    def command(self, *arguments: str | Path, subuid: str = GIVEN, subgid: str | None = None) -> list[str]:
        return with_ids(self.directory, [*self.ordinary_user, *map(str, arguments)], subuid, subgid)

    def other_program(self, *command: str) -> list[str]:
        """The same for a program that is not mystfuse."""
        become = self.ordinary_user[: self.ordinary_user.index("env")]
        return with_ids(self.directory, [*become, *command])

    def run(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Does not check the exit status."""
        ids = {name: options.pop(name) for name in ("subuid", "subgid") if name in options}
        return run(*self.command(*arguments, **ids), check=False, **{"timeout": 60, **options})

    def output(self, image: Path, *command: str, options: tuple[str | Path, ...] = ()) -> str:
        """The output of a program that is root in an image."""
        result = self.run("exec", "--root", *options, image, *command)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout
