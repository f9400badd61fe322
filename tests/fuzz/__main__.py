"""``scripts/fuzz``: runs targets one after the other, each for its part of the time, and prints the results."""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from removal import remove_tree, temporary_directory
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz.harness import CORPUS, Target
from tests.fuzz.targets import TARGETS

PROJECT = Path(__file__).parents[2]
WORK = PROJECT / ".fuzz"
MAX_CRASHES = 5
"""Crashes of one target in one run: it goes on after each."""
MAX_INPUT_SECONDS = 60
"""Seconds of the clock. The targets themselves raise after less processor time."""
MAX_MEMORY = 1024
"""MiB that a target may use."""
_PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")
_STATISTIC = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


@dataclass
class Outcome:
    """The result of one target."""

    executions: int = 0
    seconds: float = 0
    reached: int = 0
    """Edges of the code that the inputs reach together."""
    new_inputs: int = 0
    crashes: list[Path] = field(default_factory=list)
    complaint: str = ""
    """Why the fuzzer itself did not run."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz mystfuse, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all; --list names them")
    parser.add_argument("--seconds", type=float, default=300, help="in all, divided among the targets (default: 300)")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="corpus/ and crashes/ (default: .fuzz)")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run one input of one TARGET, and show what happens"
    )
    parser.add_argument("--merge", action="store_true", help="add to tests/fuzz/corpus what reaches more, and end")
    parser.add_argument("--list", action="store_true", help="name the targets, and end")
    given = parser.parse_args()
    if given.list:
        print("\n".join(TARGETS))
        return 0
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    chosen = [TARGETS[name] for name in given.targets or TARGETS]
    if given.replay is not None:
        if len(given.targets) != 1:
            parser.error("--replay FILE goes with one TARGET")
        return replay(chosen[0], given.replay)
    if given.merge:
        for target in chosen:
            merge(target, given.work / "corpus" / target.name)
        return 0
    return run_all(chosen, given.seconds, given.work)


def replay(target: Target, path: Path) -> int:
    """Run one input; returns 1 if it breaks a promise."""
    try:
        target.run(path.read_bytes())
    except Exception:
        traceback.print_exc()
        return 1
    print(f"{path}: nothing wrong")
    return 0


def run_all(targets: list[Target], seconds: float, work: Path) -> int:
    console = Console(stderr=True)
    each = seconds / len(targets)
    outcomes: dict[str, Outcome] = {}
    is_interrupted = False
    columns = TextColumn("{task.description:20}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=seconds, now="")
        for number, target in enumerate(targets):

            def show(now: str, spent: float, name: str = target.name, before: float = number * each) -> None:
                progress.update(task, description=name, now=now, completed=before + spent)

            try:
                outcomes[target.name] = run(target, each, work, show)
            except KeyboardInterrupt:
                # Print the results of the other targets all the same.
                is_interrupted = True
                break
    table = Table()
    for name in ("target", "executions", "exec/s", "edges", "new corpus", "crashes"):
        table.add_column(name, justify="left" if name == "target" else "right")
    for name, outcome in outcomes.items():
        rate = outcome.executions / max(outcome.seconds, 0.001)
        crashes = outcome.complaint or str(len(outcome.crashes))
        table.add_row(
            name, f"{outcome.executions:,}", f"{rate:,.0f}", str(outcome.reached), str(outcome.new_inputs), crashes
        )
    executions = sum(outcome.executions for outcome in outcomes.values())
    crashes = [path for outcome in outcomes.values() for path in outcome.crashes]
    Console(width=None if console.is_terminal else 100).print(table)
    print(f"{executions:,} executions of {len(outcomes)} targets, {len(crashes)} crashes")
    for path in crashes:
        print(f"  scripts/fuzz --replay {path} {path.name.split('@')[0]}")
    if crashes:
        print(f"their inputs and tracebacks are in {work / 'crashes'}")
    if is_interrupted:
        return 130
    return 1 if crashes or any(outcome.complaint for outcome in outcomes.values()) else 0


def run(target: Target, seconds: float, work: Path, show: Callable[[str, float], None]) -> Outcome:
    """Fuzz one target for this many seconds, going on after a crash."""
    corpus, crashes = work / "corpus" / target.name, work / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    before = len(list(corpus.iterdir()))
    outcome = Outcome()
    started = time.monotonic()
    with temporary_directory("mystfuse-fuzz-") as scratch:
        seeds, words = Path(scratch) / "seeds", Path(scratch) / "words"
        write_seeds(target, seeds)
        words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in target.words))
        while len(outcome.crashes) < MAX_CRASHES and (left := seconds - (time.monotonic() - started)) >= 1:
            prefix = f"{crashes}/{target.name}@"
            known = set(crashes.glob(f"{target.name}@*"))
            command = [
                sys.executable, "-m", "tests.fuzz.guided", target.name, f"-max_total_time={int(left)}",
                f"-max_len={target.max_length}", f"-timeout={MAX_INPUT_SECONDS}", f"-rss_limit_mb={MAX_MEMORY}",
                f"-artifact_prefix={prefix}", "-print_final_stats=1", str(corpus), str(seeds),
                *(str(path) for path in (CORPUS / target.name,) if path.exists()),
            ]  # fmt: skip
            if target.words:
                command.append(f"-dict={words}")
            executed, said = 0, []
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as fuzzer:
                assert fuzzer.stdout is not None
                for line in fuzzer.stdout:
                    if found := _PROGRESS.match(line):
                        executed, outcome.reached = int(found[1]), max(int(found[2]), outcome.reached)
                        show(f"{outcome.executions + executed:,} executions", time.monotonic() - started)
                    elif found := _STATISTIC.match(line):
                        executed = int(found[1])
                    else:
                        said.append(line)
            outcome.executions += executed
            new = [path for path in set(crashes.glob(f"{target.name}@*")) - known if path.suffix != ".txt"]
            for path in new:
                path.with_name(path.name + ".txt").write_text("".join(said[-200:]))
            outcome.crashes += new
            if fuzzer.returncode and not new:
                outcome.complaint = said[-1].strip() if said else f"exit status {fuzzer.returncode}"
                break
    outcome.seconds = time.monotonic() - started
    outcome.new_inputs = len(list(corpus.iterdir())) - before
    return outcome


def write_seeds(target: Target, directory: Path) -> None:
    directory.mkdir()
    for seed in target.seeds():
        (directory / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def merge(target: Target, found: Path) -> None:
    """Reduce the corpus in the repository to the smallest that reaches as much as it and ``found`` together, without
    seeds."""
    corpus = CORPUS / target.name
    with temporary_directory("mystfuse-fuzz-") as scratch:
        seeds, merged = Path(scratch) / "seeds", Path(scratch) / "merged"
        write_seeds(target, seeds)
        merged.mkdir()
        sources = [str(path) for path in (seeds, corpus, found) if path.exists()]
        subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", target.name, "-merge=1", f"-max_len={target.max_length}",
             str(merged), *sources],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        given = {path.name for path in seeds.iterdir()}
        # Written beside it first, so that an interrupt leaves one of the two.
        new = corpus.with_name(f".{corpus.name}.new")
        remove_tree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for path in merged.iterdir():
            if path.name not in given:
                shutil.copy(path, new / path.name[:12])
        remove_tree(corpus, ignore_errors=True)
        new.rename(corpus)
    print(f"{target.name}: {len(list(corpus.iterdir()))} inputs")


if __name__ == "__main__":
    sys.exit(main())
