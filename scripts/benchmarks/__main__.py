"""``scripts/bench``: the command line, and the rounds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.bench import Bench, alone_in, open_scratch
from benchmarks.data import FULL, QUICK, TINY, Store, clean, recipes
from benchmarks.job import Job
from benchmarks.jobs import JOBS, choose
from benchmarks.plots import save_bars, save_scaling
from benchmarks.remote_jobs import write_traces
from benchmarks.results import SUBJECT, Outcome, number, print_table
from benchmarks.scaling import Plot, Scaling
from benchmarks.tools import BenchmarkError, LeftOut, WrongResult

DEFAULT_WORK = Path("/var/tmp/mystfuse-bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    # As the first process of a namespace we get only signals for which we install a handler.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    options = _parser().parse_args(arguments)
    try:
        jobs = choose(options.jobs) if options.jobs else JOBS
    except ValueError as error:
        return _fail(str(error), 2)
    if options.list:
        for job in jobs:
            print(f"{job.name:18}{job.title}, {job.unit}: {', '.join(job.measures)}")
        return 0
    try:
        if options.clean and not options.work.is_dir():
            return 0
        with alone_in(options.work, lambda text: print(text, file=sys.stderr)):
            if options.clean:
                clean(options.work)
                return 0
            return _run(options, jobs)
    except OSError as error:
        return _fail(str(error), 1)
    except BenchmarkError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure mystfuse against its peers and its marks."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="less data, one round: a few minutes")
    size.add_argument("--tiny", action="store_true", help="next to no data: to see that it works")
    parser.add_argument("--jobs", metavar="NAME,...", help="only these (mount: all that begin with mount-)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"readings of each (default {FULL.rounds}; quick: 1)")
    parser.add_argument("--list", action="store_true", help="list the jobs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all readings here")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the table here")
    parser.add_argument("--scaling", action="store_true", help="instead: how it scales, up to files of 8 GiB")
    parser.add_argument("--scaling-svg", type=Path, metavar="FILE", help="draw that here")
    parser.add_argument("--remote-traces", type=Path, metavar="FILE", help="instead: for scripts/simulate-origin")
    parser.add_argument("--work", type=Path, metavar="DIR", default=DEFAULT_WORK, help=f"data (default {DEFAULT_WORK})")
    parser.add_argument("--clean", action="store_true", help="remove the data, and end")
    return parser


def _run(options: argparse.Namespace, jobs: Sequence[Job]) -> int:
    sizes = TINY if options.tiny else QUICK if options.quick else FULL
    if options.rounds is not None:
        sizes = replace(sizes, rounds=max(1, options.rounds))
    console = Console(width=None if sys.stdout.isatty() else 120)
    facts = machine.facts()
    for name, value in facts.items():
        console.print(f"{name:12}{value}", highlight=False, markup=False)
    start = time.monotonic()
    with open_scratch(options.work) as scratch, _progress() as progress:

        def say(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False)

        bench = Bench(Store(options.work, sizes, say), scratch)
        bench.match_read_ahead()
        if options.scaling or options.scaling_svg:
            plots = Scaling(options.work, sizes, scratch, say, divisor=256 if options.tiny else 1).measure()
            return _report_scaling(options, facts, console, plots)
        if options.remote_traces:
            write_traces(bench, options.remote_traces)
            return 0
        outcomes = [_measure(bench, job, progress) for job in jobs]
    console.print()
    print_table(console, outcomes)
    for note in bench.notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"{time.monotonic() - start:.0f} s", highlight=False)
    if options.json:
        document = {
            "machine": facts,
            "sizes": recipes(sizes),
            "jobs": [outcome.as_dict() for outcome in outcomes],
            "notes": list(bench.notes),
        }
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if options.svg:
        save_bars(options.svg, outcomes, _subtitle(facts))
    return 0


def _report_scaling(options: argparse.Namespace, facts: dict[str, str], console: Console, plots: Sequence[Plot]) -> int:
    for plot in plots:
        console.print(f"\n{plot.title}: {plot.y_label} by {plot.x_label}", highlight=False)
        for name, points in plot.lines.items():
            figures = ", ".join(f"{number(x)}: {number(y)}" for x, y in points)
            console.print(f"  {name:12}{figures}", highlight=False)
    if options.json:
        document = {"machine": facts, "plots": [asdict(plot) for plot in plots]}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if options.scaling_svg:
        save_scaling(options.scaling_svg, plots, _subtitle(facts))
    return 0


def _subtitle(facts: dict[str, str]) -> str:
    return f"{facts['CPU']}, {facts['cores']} cores, Linux {facts['kernel']}, {facts['date']}"


def _measure(bench: Bench, job: Job, progress: Progress) -> Outcome:
    """All rounds of one job; the contenders take turns. A peer that fails is left out, mystfuse must not fail."""
    outcome = Outcome(job)
    if job.needs_root and os.getuid():
        bench.note(f"{job.name} is left out: needs root")
        return outcome
    start = time.monotonic()
    contenders = {}
    for name, measure in job.measures.items():
        if reason := bench.missing(name):
            bench.note(f"{name} is left out: {reason}")
        else:
            contenders[name] = measure
            outcome.readings[name] = []
    rounds = 1 if job.once else getattr(bench.sizes, job.exact_rounds or "rounds")
    task = progress.add_task(job.title, total=rounds * len(contenders))
    for index in range(rounds):
        for name in _rotated(list(contenders), index):
            if name in contenders:
                try:
                    outcome.readings[name].append(contenders[name](bench))
                except WrongResult:
                    raise
                except BenchmarkError as error:
                    if name == SUBJECT and not isinstance(error, LeftOut):
                        raise
                    bench.note(f"{job.name}: {name} is left out: {error}")
                    del contenders[name], outcome.readings[name]
            progress.advance(task)
    progress.update(task, visible=False)
    outcome.seconds = time.monotonic() - start
    return outcome


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description:46}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _fail(message: str, status: int) -> int:
    print(f"scripts/bench: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
