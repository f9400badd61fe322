"""``scripts/soak``: the command line, and the course of a soak."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import click
from benchmarks import machine
from benchmarks.tools import BenchmarkError, drop_caches, mystfuse_command, run
from removal import mounts_in, remove_tree
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mystfuse.cli.options import parse_size
from soaking.crew import Crew, Stopped
from soaking.daemon import Daemon, adopt_orphans
from soaking.image import Manifest, make_image
from soaking.meter import Meter, Phase
from soaking.report import MIB, Verdict, judge_memory, print_table, save_plots
from soaking.share import Task

DEFAULT_WORK = Path("/var/tmp/mystfuse-soak")
POINTS = 5
"""How often the load pauses for a check of everything, before the end."""
_DROP_EVERY = 20.0
"""Seconds between two drops of the kernel's caches."""
_FILLED, _FILLED_WITH_STORE = 0.6, 3.0
"""The amount that the workers together keep written, as a multiple of the overlay's limit."""
_PATIENCE = 20.0
"""Seconds within which removed files must have been released."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEY_BYTES = 64
_BLOCK_SECTORS = 8
"""Units of st_blocks in a block of the file system."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    # As the first process of a namespace we get only signals for which we install a handler.
    for number in _ENDING:
        signal.signal(number, _interrupt)
    options = _parser().parse_args(arguments)
    try:
        with _work_directory(options.work) as work:
            return Soak(options, work).run()
    except (OSError, BenchmarkError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Only once: a second ^C must not end the cleaning up.
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _size(value: str) -> int:
    try:
        return parse_size(value)
    except click.BadParameter as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _from_to(least: float, most: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """Parses a number within bounds."""

    def parse(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{value!r} is not a number from {least:g} to {most:g}")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Put a mount under mixed load, and judge it.")
    parser.add_argument(
        "--minutes", type=_from_to(0.01, 1e5, float), default=60, metavar="N", help="of load (default 60)"
    )
    parser.add_argument(
        "--processes", type=_from_to(1, 1000), default=32, metavar="N", help="that make it (default 32)"
    )
    parser.add_argument(
        "--overlay-limit", type=_size, default=256 * MIB, metavar="SIZE", help="of the mount (default 256M)"
    )
    parser.add_argument("--overlay-store", type=Path, metavar="DIR", help="of the mount: holds what memory does not")
    parser.add_argument(
        "--data",
        type=_size,
        metavar="SIZE",
        help="that is written at any time (default: 60 %% of the overlay's limit; with a store 3 times the limit)",
    )
    parser.add_argument("--encrypted", action="store_true", help="an encrypted image")
    parser.add_argument(
        "--memory-limit", type=_size, metavar="SIZE", help="what the daemon may take up (default: none)"
    )
    parser.add_argument(
        "--files", type=_from_to(100, 1_000_000), default=20_000, metavar="N", help="of the image (default 20000)"
    )
    parser.add_argument(
        "--seed", type=_from_to(0, 1 << 62), default=2026, metavar="N", help="other numbers make other loads"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw memory and operations over time here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the daemon's log here")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, metavar="DIR", help=f"(default {DEFAULT_WORK})")
    parser.add_argument(
        "--spoil", action="store_true", help="change a byte behind a worker's back: judges the soak, which must fail"
    )
    return parser


@contextmanager
def _work_directory(parent: Path) -> Iterator[Path]:
    """A directory for the time of a run, locked; removes those of killed runs."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("soak-*"):
        with _locked(left) as is_ours:
            if is_ours and not mounts_in(left):
                remove_tree(left)
    path = Path(tempfile.mkdtemp(prefix="soak-", dir=parent)).resolve()
    try:
        with _locked(path):
            yield path
    finally:
        # Do not empty a mount that failed to unmount.
        if not mounts_in(path):
            remove_tree(path)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options = options
        self._work = work
        self._mountpoint = work / "mount"
        self._seconds: float = options.minutes * 60
        times = _FILLED_WITH_STORE if options.overlay_store else _FILLED
        self._data: int = options.data or int(options.overlay_limit * times)
        self._free: int = self._room()
        """The free bytes in the image."""
        self._console = Console(width=None if sys.stdout.isatty() else 120)
        self._verdicts: list[Verdict] = []
        self._points: list[dict[str, Any]] = []
        self._meter = Meter(options.processes)
        self._loaded = 0.0
        """The seconds of the load."""
        self._next_drop = 0.0

    def run(self) -> int:
        """Run all of it; returns the exit status."""
        facts = machine.facts()
        self._say(f"{facts['CPU']}, {facts['cores']} cores, Linux {facts['kernel']}, mystfuse {facts['mystfuse']}")
        adopt_orphans()
        self._mountpoint.mkdir()
        image, manifest, key = self._make_image()
        before = _sha256(image)
        crew, daemon = self._soak(image, manifest, key)
        wrong_lines, warnings = daemon.log_lines()
        self._judge_all("workers", crew.wrongs, f"{self._meter.checked()[0]:,} files checked")
        self._judge_all("log", wrong_lines, f"no errors, {sum(warnings.values())} warnings")
        for warning, count in sorted(warnings.items()):
            self._say(f"logged {count} times: {warning}")
        self._judge("image unchanged", _sha256(image) == before, "its sha256 is what it was")
        self._judge_all("nothing left", [f"still running: {words}" for words in _children()], "no process is left")
        self._verdicts.append(judge_memory(daemon.samples, self._loaded))
        if self._options.memory_limit:
            peak, limit = daemon.peak, self._options.memory_limit
            said = f"{peak / MIB:.1f} MiB at most, bounded to {limit / MIB:.0f} MiB by {daemon.limited_by}"
            self._judge("memory bounded", peak <= limit, said)
        self._report(facts, daemon, warnings)
        wrongs = [verdict for verdict in self._verdicts if not verdict.is_right]
        for verdict in wrongs:
            print(f"scripts/soak: {verdict.name}: {verdict.said}", file=sys.stderr)
        return 1 if wrongs else 0

    def _room(self) -> int:
        limit: int = self._options.overlay_limit
        if self._options.overlay_store:
            # The store does not fill up, so the file system has to.
            return self._data + limit
        return 2 * (max(self._data, limit) + 16 * MIB)

    def _say(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def _judge(self, name: str, is_right: bool, said: str) -> None:
        self._verdicts.append(Verdict(name, is_right, said if is_right else f"not so: {said}"))

    def _judge_all(self, name: str, wrongs: Sequence[str], said: str) -> None:
        """One verdict for each fault; one if there is none."""
        self._verdicts += [Verdict(name, False, wrong) for wrong in wrongs] or [Verdict(name, True, said)]

    def _make_image(self) -> tuple[Path, Manifest, Path | None]:
        options = self._options
        key = None
        if options.encrypted:
            key = self._work / "key"
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.urandom(_KEY_BYTES))
        image, manifest = make_image(self._work, options.processes, options.files, self._free, options.seed, key)
        self._say(f"an image of {os.stat(image).st_size / MIB:,.0f} MiB with {len(manifest.paths):,} files")
        return image, manifest, key

    def _soak(self, image: Path, manifest: Manifest, key: Path | None) -> tuple[Crew, Daemon]:
        options = self._options
        words = [f"--overlay-limit={options.overlay_limit}"]
        if options.overlay_store:
            words.append(f"--overlay-store={options.overlay_store}")
        if key:
            words.append(f"--key-file={key}")
        daemon = Daemon(image, self._mountpoint, self._work / "log", words, options.memory_limit)
        fill_every = min(max(self._seconds / 10, 2.0), 60.0)
        tasks = [
            Task(
                self._mountpoint,
                number,
                options.seed,
                self._data // options.processes,
                manifest,
                fill=self._free if number == 0 else 0,
                fill_every=fill_every,
            )
            for number in range(options.processes)
        ]
        self._meter.phase = Phase.PAUSE
        with ExitStack() as stack:
            # Workers last: one that waits for the mount ends with the daemon, and not before.
            crew = Crew(tasks, self._meter)
            stack.callback(crew.reap)
            stack.enter_context(daemon)
            stack.callback(crew.kill)
            self._check_statfs = self._remember_space()
            progress = stack.enter_context(_progress(self._console))
            start = time.monotonic()
            daemon.watch(self._meter.operations)
            try:
                self._load(crew, daemon, progress, start, fill_every)
                self._commit()
                crew.lead(Phase.REMOVE, lambda: self._still_there(daemon, crew))
                crew.wait()
                self._check_statfs(daemon)
            except Stopped:
                self._loaded = self._loaded or time.monotonic() - start
                crew.kill()
                crew.reap(_PATIENCE)
            if not daemon.has_ended():
                self._judge_all("unmounting", daemon.end(), "clean")
        if options.log:
            shutil.copy(self._work / "log", options.log)
        return crew, daemon

    def _load(self, crew: Crew, daemon: Daemon, progress: Progress, start: float, fill_every: float) -> None:
        task = progress.add_task("", total=self._seconds)
        self._meter.fill_at = start + fill_every
        self._next_drop = start + min(_DROP_EVERY, self._seconds / 4)
        points = [start + self._seconds * (number + 1) / (POINTS + 1) for number in range(POINTS)]
        while True:
            crew.lead(Phase.RUN, lambda: self._still_there(daemon, crew))
            until = points.pop(0) if points else start + self._seconds
            while (now := time.monotonic()) < until:
                crew.watch()
                self._still_there(daemon, crew)
                if now >= self._next_drop:
                    self._next_drop = now + min(_DROP_EVERY, self._seconds / 4)
                    drop_caches()
                progress.update(task, completed=now - start, description=self._describe(daemon))
                time.sleep(0.1)
            is_last = until == start + self._seconds
            self._point(crew, daemon, start, is_last)
            if is_last:
                break
        self._loaded = time.monotonic() - start

    def _describe(self, daemon: Daemon) -> str:
        if len(daemon.samples) < 2:
            return "soaking"
        before, after = daemon.samples[-2:]
        done = sum(after.operations.values()) - sum(before.operations.values())
        return f"{done / (after.second - before.second):6,.0f} operations/s, {after.rss / MIB:4.0f} MiB"

    def _still_there(self, daemon: Daemon, crew: Crew) -> None:
        if daemon.has_ended():
            crew.wrongs.append("the daemon has ended in the middle of it")
            raise Stopped

    def _point(self, crew: Crew, daemon: Daemon, start: float, is_last: bool) -> None:
        """The load pauses, and everything is checked."""
        second = time.monotonic() - start
        crew.lead(Phase.PAUSE, lambda: self._still_there(daemon, crew))
        if self._options.spoil:
            _spoil(self._mountpoint / "own/000")
        drop_caches()
        crew.lead(Phase.CHECK, lambda: self._still_there(daemon, crew))
        verdict = _fsck(self._mountpoint / ".mystfuse/image")
        name = "e2fsck at the end" if is_last else f"e2fsck at point {len(self._points) + 1}"
        self._judge(name, verdict == "", verdict or "clean")
        files, checked = self._meter.checked()
        operations = sum(self._meter.operations().values())
        self._points.append({"second": second, "operations": operations, "files": files, "clean": verdict == ""})
        rss = daemon.samples[-1].rss if daemon.samples else 0
        self._say(
            f"{second:6.0f} s: {operations:,} operations, {files:,} files and {checked / MIB:,.0f} MiB were as they "
            f"should be, e2fsck: {verdict or 'clean'}; {rss / MIB:.0f} MiB of memory"
        )

    def _commit(self) -> None:
        """A new image of the final state is sound, too."""
        new, plain = self._work / "committed.img", self._work / "plain.img"
        words = ["--decrypt"] if self._options.encrypted else []
        try:
            run(*mystfuse_command(), "commit", *words, self._mountpoint, new)
            run(*mystfuse_command(), "verify", new)
            os.rename(new, plain)
            verdict = _fsck(plain)
        except BenchmarkError as error:
            verdict = str(error)
        new.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
        self._judge("commit", verdict == "", verdict or "verified, and e2fsck has nothing to say")

    def _remember_space(self) -> Callable[[Daemon], None]:
        """Record the free space; returns a function that checks it once the workers have removed everything."""
        free, held = os.statvfs(self._mountpoint), self._held()

        def check(daemon: Daemon) -> None:
            deadline = time.monotonic() + _PATIENCE
            while daemon.read_status()["unlinked_inodes"] and time.monotonic() < deadline:
                time.sleep(0.1)
            now, left = os.statvfs(self._mountpoint), self._held()
            blocks = free.f_bfree + held[0] - left[0]
            inodes = free.f_ffree + held[1] - left[1]
            self._judge(
                "space is back",
                (now.f_bfree, now.f_ffree, daemon.status["unlinked_inodes"]) == (blocks, inodes, 0),
                f"{now.f_bfree} blocks and {now.f_ffree} inodes are free, to be {blocks} and {inodes}; "
                f"{daemon.status['unlinked_inodes']} are still to be released",
            )
            kept = daemon.status["overlay_used"] + daemon.status.get("overlay_store_used", 0)
            said = f"{kept / MIB:.1f} MiB are still held"
            self._judge("overlay is given back", kept < self._options.overlay_limit / 8, said)

        return check

    def _held(self) -> tuple[int, int]:
        """(blocks, inodes) that workers may change."""
        inodes: dict[int, int] = {}
        for top in ("own", "shared"):
            for path, _, names in os.walk(self._mountpoint / top):
                for name in ("", *names):
                    status = os.lstat(os.path.join(path, name))
                    inodes[status.st_ino] = status.st_blocks // _BLOCK_SECTORS
        return sum(inodes.values()), len(inodes)

    def _report(self, facts: dict[str, str], daemon: Daemon, warnings: dict[str, int]) -> None:
        options, samples = self._options, daemon.samples
        latencies = self._meter.latencies()
        operations = sum(latency.count for latency in latencies.values())
        seconds = self._loaded or 1.0
        print_table(self._console, latencies, seconds)
        self._say(f"{operations:,} operations in {seconds:.0f} s, {operations / seconds:,.0f} a second")
        errors = self._meter.errors()
        self._say(f"errors: {', '.join(f'{count} {name}' for name, count in errors.items()) or 'none'}")
        if samples:
            threads, descriptors = (
                max(values) for values in zip(*((s.threads, s.descriptors) for s in samples), strict=True)
            )
            used = (samples[-1].cpu - samples[0].cpu) / max(samples[-1].second - samples[0].second, 1)
            self._say(
                f"daemon: {daemon.peak / MIB:.1f} MiB of memory, {threads} threads and {descriptors} descriptors at "
                f"most; {used:.0%} of a processor"
            )
        for verdict in self._verdicts:
            self._say(f"{'right' if verdict.is_right else 'WRONG'}  {verdict.name}: {verdict.said}")
        load = f"{options.processes} processes, {seconds / 60:.3g} minutes"
        if options.json:
            document = {
                "machine": facts,
                "options": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
                "seconds": seconds,
                "operations": {kind: asdict(latency) for kind, latency in latencies.items()},
                "errors": errors,
                "warnings": warnings,
                "points": self._points,
                "verdicts": [asdict(verdict) for verdict in self._verdicts],
                "status": daemon.status,
                "samples": [asdict(sample) for sample in samples],
            }
            options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        if options.svg:
            subtitle = f"{facts['CPU']}, {facts['cores']} cores, Linux {facts['kernel']}, {facts['date']}"
            marks = [point["second"] for point in self._points]
            save_plots(options.svg, samples, marks, f"A soak: {load}; dots: checks\n{subtitle}")


def _fsck(image: Path) -> str:
    """e2fsck's verdict on a file system, in one line; "" if it is clean."""
    result = subprocess.run(["e2fsck", "-fn", image], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode == 0:
        return ""
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line and not line.startswith("Pass ")]
    return f"e2fsck exited {result.returncode}: {'; '.join(lines)[:1000]}"


def _spoil(directory: Path) -> None:
    """Change one byte of a file, behind its worker's back."""
    path = next(path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size)
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _children() -> list[str]:
    """The command lines of processes that are left, including children of our programs."""
    try:
        # Some are zombies, since no other process waits for them.
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    children = (task / "children" for task in Path("/proc/self/task").iterdir())
    pids = [pid for path in children for pid in path.read_text().split()]
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() for pid in pids]


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description:34}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _fail(message: str, status: int) -> int:
    print(f"scripts/soak: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
