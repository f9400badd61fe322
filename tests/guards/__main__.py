"""Takes the guards behind docs/security.md away, one by one, and sees that their tests fail each time.

    python -m tests.guards [--table] [--jobs N] [NAME...]

Each guard is a piece of code that keeps a promise. Its tests run in a copy of the project in which that piece is
replaced by one that keeps nothing; a test that passes there would show nothing. Each of the tests that are named for a
guard has to fail, and all of them have to pass in an unchanged copy. That each piece is still in its file, once, and
each promise has its guard, test_security_document.py sees in every run of the suite.

The copy has a virtual environment of its own, in which the commands of the copy are installed: what the tests start,
isolated or not, is the copy's code.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "scripts"))

from removal import mounts_in, temporary_directory  # noqa: E402

from tests.guards.guard import Guard  # noqa: E402
from tests.guards.guards_of_caches import OF_CACHES  # noqa: E402
from tests.guards.guards_of_credentials import OF_CREDENTIALS  # noqa: E402
from tests.guards.guards_of_fetchers import OF_FETCHERS  # noqa: E402
from tests.guards.guards_of_images import OF_IMAGES  # noqa: E402
from tests.guards.guards_of_machines import OF_MACHINES  # noqa: E402
from tests.guards.guards_of_signing import OF_SIGNING  # noqa: E402

GUARDS: tuple[Guard, ...] = (
    *OF_IMAGES, *OF_MACHINES, *OF_SIGNING, *OF_CREDENTIALS, *OF_CACHES, *OF_FETCHERS,
)  # fmt: skip
"""Against an image, its storage and its signer, against other users, for signers, for credentials, for caches, and
against fetchers."""
TIMEOUT = 240
"""Seconds: without a guard against hanging, a test may hang."""
_LIMITS = {resource.RLIMIT_NOFILE: 4096, resource.RLIMIT_FSIZE: 1 << 30}
"""Without a guard against endless work, a test must neither fill the disk nor descend without end."""


class Copy:
    """A copy of the project in ``directory/copy``; its tests use ``directory/t`` as their temporary directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "copy"
        self._temporary = directory / "t"
        self._temporary.mkdir()
        directory.chmod(0o755)
        ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".fuzz", ".hypothesis")
        shutil.copytree(PROJECT, self.path, symlinks=True, ignore=ignored)
        environment = Path(sys.prefix)
        # The tests only read the originals, so links will do where they are possible.
        how = "-al" if environment.stat().st_dev == self.path.stat().st_dev else "-a"
        subprocess.run(["cp", how, environment, self.path / ".venv"], check=True)
        # The copy needs its own path of the package and its own commands.
        for file in [*self.path.glob(".venv/lib/*/site-packages/__editable__*"), *self.path.glob(".venv/bin/*")]:
            if file.is_file() and not file.is_symlink() and str(PROJECT).encode() in file.read_bytes():
                text, mode = file.read_text(), file.stat().st_mode
                file.unlink()
                file.write_text(text.replace(str(PROJECT), str(self.path)))
                file.chmod(mode)

    def run(self, tests: tuple[str, ...], *options: str) -> str:
        """Run tests, below tests/; returns pytest's output. A test that hangs is ended and counts as failed."""
        command = [self.path / ".venv/bin/python3", "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *options]
        process = subprocess.Popen(
            [*command, f"--basetemp={self._temporary / 'p'}", *(f"tests/{test}" for test in tests)],
            cwd=self.path, env={**os.environ, "TMPDIR": str(self._temporary), "COLUMNS": "400"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True, preexec_fn=_limit,
        )  # fmt: skip
        try:
            return process.communicate(timeout=TIMEOUT * max(len(tests), 1))[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            return output + "".join(f"\nFAILED tests/{test} - hangs" for test in tests)
        finally:
            for mountpoint in reversed(mounts_in(self._temporary)):
                subprocess.run(["umount", "-l", mountpoint], check=False, stderr=subprocess.DEVNULL)

    def try_without(self, guard: Guard) -> str | None:
        """What is wrong with a guard or its tests; None if they all fail once it is gone."""
        file = self.path / guard.file
        code = file.read_text()
        if code.count(guard.code) != 1:
            return f"{guard.file} has its code {code.count(guard.code)} times"
        self._write(file, code.replace(guard.code, guard.without))
        try:
            # Of several tests each has to fail; of a single one, its first case.
            output = self.run(guard.tests, *(["-x"] if len(guard.tests) == 1 else []))
        finally:
            self._write(file, code)
        failed = {line.split()[1] for line in output.splitlines() if re.match(r"(FAILED|ERROR) tests/", line)}
        passed = [test for test in guard.tests if not any(_is_of(each, test) for each in failed)]
        if not passed:
            return None
        return f"without it these do not fail: {' '.join(passed)}\n{output[-1500:]}"

    def _write(self, file: Path, code: str) -> None:
        """Change a file, and compile it if it is C."""
        file.write_text(code)
        # By its time and size Python would know what it has compiled.
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()
        if file.suffix == ".c":
            build = [self.path / ".venv/bin/python3", "setup.py", "-q", "build_ext", "--inplace", "--force"]
            subprocess.run(build, cwd=self.path, check=True, capture_output=True)


def _is_of(case: str, test: str) -> bool:
    """Whether pytest's name is this test, or one of its cases."""
    return case == f"tests/{test}" or case.startswith((f"tests/{test}[", f"tests/{test} "))


def _limit() -> None:
    for which, limit in _LIMITS.items():
        resource.setrlimit(which, (limit, limit))


def table() -> str:
    """The guards, as docs/guards.md lists them."""
    lines = ["| the guard sees to it that | in | without it these fail |", "|---|---|---|"]
    for guard in GUARDS:
        tests = ", ".join(f"`tests/{test}`" for test in guard.tests)
        lines.append(f"| {guard.name} | `{guard.file.removeprefix('mystfuse/')}` | {tests} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.guards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="those alone whose names begin so")
    parser.add_argument("--table", action="store_true", help="print them as docs/guards.md lists them")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    guards = [guard for guard in GUARDS if not arguments.names or guard.name.startswith(tuple(arguments.names))]
    if arguments.table:
        print(table(), end="")
        return 0
    if sys.prefix == sys.base_prefix:
        parser.error("not in a virtual environment: scripts/test makes .venv")
    copies: SimpleQueue[Copy] = SimpleQueue()

    def try_one(guard: Guard) -> bool:
        """Whether the guard's tests fail."""
        copy = copies.get()
        try:
            started = time.monotonic()
            fault = copy.try_without(guard)
        finally:
            copies.put(copy)
        seconds = f"{time.monotonic() - started:3.0f} s"
        print(f"ok  {seconds} {guard.name}" if fault is None else f"BAD {seconds} {guard.name}: {fault}", flush=True)
        return fault is None

    with temporary_directory("mg-") as directory:
        directory.chmod(0o755)
        for number in range(arguments.jobs):
            (directory / str(number)).mkdir()
            copies.put(Copy(directory / str(number)))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            faults = [*pool.map(try_one, guards)].count(False)
        output = copies.get().run(tuple(sorted({test for guard in guards for test in guard.tests})))
        print(f"with all of them: {output.splitlines()[-1]}")
        if re.search(r"^(FAILED|ERROR)|no tests ran", output, re.MULTILINE):
            print(output[-3000:])
            faults += 1
    print(f"{len(guards)} guards removed one by one, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
