"""Progress on a terminal; nothing when stderr is not one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def prepare_progress() -> None:
    """Import the modules of ``progress``, for a process that loses access to them."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        # Showing something for the first time imports the rest.
        console = Console(file=io.StringIO(), force_terminal=True)
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console,
                      auto_refresh=False) as bar:  # fmt: skip
            bar.update(bar.add_task("", total=1), advance=1, refresh=True)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar (a spinner when ``total`` is None) while the block runs.

    Yields:
        The function to call with the number of bytes done since the last call.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    if total is not None:
        columns += (DownloadColumn(binary_units=True), TimeRemainingColumn())  # type: ignore[assignment]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
