"""The manual pages describe the program: they have exactly click's options."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest
from documents.commands import commands

from mystfuse.cli.main import COMMANDS
from mystfuse.cli.mount_options import OPTION_NAMES
from tests.support.commands import run

PROJECT = Path(__file__).parents[2]
PAGES = {page.name: page for page in (PROJECT / "man").iterdir()}


def options_of(name: str) -> set[str]:
    """The options of a command, without their dashes."""
    return {
        text.lstrip("-")
        for parameter in commands()[name].params
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
    }


def section_of(page: str, name: str) -> str:
    """The text between a heading of a manual page and the next."""
    match = re.search(rf"^\.S[sh] {name}\n(.*?)(?=^\.S[sh] |\Z)", PAGES[page].read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"{page} has no section {name}"
    return match[1]


def flags_of(section: str) -> set[str]:
    """The options in a section: the words after Fl, up to the next macro or argument."""
    flags: set[str] = set()
    for line in section.splitlines():
        if line.startswith((".It Fl", ".Fl")):
            words = re.split(r" (?:Ar|Ns|Op|Pq|Cm|:)\b| :", re.sub(r"\bFl\b", ",", line))
            flags |= {word.lstrip("-").removeprefix("-") for word in re.findall(r"[\w-]+", words[0][3:])}
    return flags - {"It"}


@pytest.mark.parametrize("name", commands())
def test_every_option_is_in_the_manual_page_and_no_other(name: str) -> None:
    assert flags_of(section_of("mystfuse.1", name)) == options_of(name)


def test_every_mount_option_is_in_the_manual_page() -> None:
    listed = set(
        re.findall(r"[a-z_]+", " ".join(re.findall(r"^\.It Cm (.*)", section_of("mystfuse.1", "MOUNT OPTIONS"), re.M)))
    )
    long = {option.replace("-", "_") for option in options_of("mount")}
    assert listed | long >= OPTION_NAMES, OPTION_NAMES - listed - long


def test_the_reference_of_commands_is_what_they_say_of_themselves() -> None:
    reference = (PROJECT / "docs/commands.md").read_text()
    for name in ("", *commands()):
        said = run(sys.executable, "-m", "mystfuse", *name.split(), "--help", env={"COLUMNS": "80"}).stdout
        assert f"## mystfuse {name}".rstrip() + f"\n\n```text\n{said}```" in reference, "scripts/docs writes it anew"
    assert reference.count("\n## ") == len(commands()) + 1


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_well_formed(page: str) -> None:
    result = run("groff", "-ww", "-mdoc", "-Tutf8", "-z", PAGES[page])
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_say_against_the_pages(page: str) -> None:
    result = run("mandoc", "-T", "lint", PAGES[page], check=False)
    # Which other pages this machine has is no fault of ours.
    said = [line for line in result.stdout.splitlines() if "referenced manual not found" not in line]
    assert said == []


def test_every_command_is_in_the_help_and_it_is_short() -> None:
    result = run(sys.executable, "-m", "mystfuse", "--help")
    assert all(f"  {name} " in result.stdout for name in COMMANDS)
    assert result.stdout.count("\n") < 45
