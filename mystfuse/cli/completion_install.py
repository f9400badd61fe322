"""Where shells look for completions and man(1) for pages, and putting ours there: for one user, or as root for all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from mystfuse.cli.completion import MARK, SHELLS, script
from mystfuse.errors import MystfuseError, explain
from mystfuse.system.atomic_file import AtomicFile

_EVERYBODY = Path("/usr/local/share")
"""Where Debian's bash-completion, zsh and man-db look for what no package has brought."""
_FISH_OF_EVERYBODY = Path("/etc/fish/completions")
"""fish looks into /usr/local/share only if XDG_DATA_DIRS says so."""
_ZSH_PATIENCE = 5.0
"""Seconds for zsh to read the user's start-up files."""
_PAGE_MARK = ".Dt "
_MAX_SIZE = 1 << 20


@dataclass
class Done:
    """What has been done, a line each, and what the user is to do."""

    lines: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    path: Path
    text: str
    mark: str
    """In the first lines of a file that is ours."""
    advice: str | None = None


def install(shells: Sequence[str] = ()) -> Done:
    """Write the scripts and manual pages.

    Args:
        shells: those to write scripts for; none: those that are installed.

    Raises:
        MystfuseError: a file cannot be written, or one that is not ours is in the way; those named before are written.
    """
    done = Done()
    places = [*_scripts(shells or [shell for shell in SHELLS if shutil.which(shell)]), *_pages()]
    # Before anything is written.
    for place in places:
        _check(place)
    for place in places:
        try:
            place.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MystfuseError(f"{place.path.parent}: cannot be made: {explain(error)}") from error
        with AtomicFile(place.path, replace=True, mode=0o644) as file:
            file.write(place.text.encode())
            file.commit()
        done.lines.append(f"wrote {place.path}")
        if place.advice is not None:
            done.advice.append(place.advice)
    return done


def uninstall(shells: Sequence[str] = ()) -> Done:
    """Remove what ``install`` has written: the scripts for these shells, or for all, and then the manual pages too.

    Raises:
        MystfuseError: a file cannot be removed, or is not ours.
    """
    done = Done()
    places = [*_scripts(shells or SHELLS), *(() if shells else _pages())]
    found = [place for place in places if os.path.lexists(place.path)]
    for place in found:
        _check(place)
    for place in found:
        try:
            place.path.unlink()
        except OSError as error:
            raise MystfuseError(f"{place.path}: cannot be removed: {explain(error)}") from error
        done.lines.append(f"removed {place.path}")
    if not found:
        done.lines.append("nothing is installed")
    return done


def _check(place: _Place) -> None:
    """Raise MystfuseError if there is a file that is not ours."""
    if not os.path.lexists(place.path):
        return
    try:
        with open(place.path, "rb") as file:
            text = file.read(_MAX_SIZE).decode(errors="replace")
    except OSError as error:
        raise MystfuseError(f"{place.path}: cannot be read: {explain(error)}") from error
    if place.mark not in text[:1000]:
        raise MystfuseError(f"{place.path}: is there, and not of mystfuse's making; move it away first")


def _scripts(shells: Sequence[str]) -> Iterator[_Place]:
    for shell in shells:
        advice = None
        if shell == "bash":
            path = _data() / "bash-completion/completions/mystfuse"
        elif shell == "fish":
            path = (_FISH_OF_EVERYBODY if _is_root() else _fish()) / "mystfuse.fish"
        else:
            directory, advice = _zsh()
            path = directory / "_mystfuse"
        yield _Place(path, script(shell), MARK, advice)


def _pages() -> Iterator[_Place]:
    pages = [page for page in resources.files("mystfuse").joinpath("man").iterdir() if page.name[-1:].isdigit()]
    base = _EVERYBODY if _is_root() else Path.home() / ".local/share"
    for page in sorted(pages, key=lambda page: page.name):
        name = page.name.rpartition(".")[0]
        yield _Place(base / f"man/man{page.name[-1]}" / page.name, page.read_text(), f"{_PAGE_MARK}{name.upper()} ")


def _is_root() -> bool:
    return os.geteuid() == 0


def _xdg(variable: str, default: str) -> Path:
    """A directory of the XDG base directory specification, which says to ignore relative ones."""
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / default


def _data() -> Path:
    return _EVERYBODY if _is_root() else _xdg("XDG_DATA_HOME", ".local/share")


def _fish() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config") / "fish/completions"


def _zsh() -> tuple[Path, str | None]:
    """The directory for zsh's script, and what the user has to do so that zsh looks there."""
    if _is_root():
        return _EVERYBODY / "zsh/site-functions", None
    home = Path.home()
    for text in _fpath():
        path = Path(text)
        if path.is_absolute() and path.is_relative_to(home) and path.is_dir() and os.access(path, os.W_OK | os.X_OK):
            return path, None
    path = _data() / "zsh/site-functions"
    return path, f"zsh does not look there yet; in ~/.zshrc, before compinit: fpath=({path} $fpath)"


def _fpath() -> list[str]:
    """The directories in which the user's zsh looks for functions; none if there is no zsh."""
    try:
        # Behind a line of our own: start-up files may print something.
        result = subprocess.run(
            ["zsh", "-i", "-c", "print -r -- mystfuse:; print -rl -- $fpath"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            errors="surrogateescape",
            timeout=_ZSH_PATIENCE,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.rpartition("mystfuse:\n")[2].splitlines()
