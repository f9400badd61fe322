"""The ten jobs of docs/jobs.md: each has a heading, and what it says or links to is run by a test."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.project.test_documents import DOCUMENTS, PROJECT, run_as_typed

HERE = "docs/jobs.md"
PAGES = "tests/project/test_documents.py::test_the_commands_of_a_document_work"
UNITS = "tests/mounting/test_systemd.py::test_the_units_work_under_systemd"
DEBIAN = "tests/container/test_apt_inside.py::test_a_fresh_debian_installs_packages"
MANY = "tests/project/test_jobs.py::test_many_files_and_a_sparse_one"


@dataclass(frozen=True)
class Recipe:
    """A section with the commands of a job, and the test that runs them."""

    page: str
    heading: str
    test: str


JOBS = [
    [Recipe(HERE, "1. Throw-away files of root's, in CI", PAGES)],
    [Recipe(HERE, "2. An unknown image", PAGES)],
    [Recipe(HERE, "3. Ship an image and its package", PAGES)],
    [Recipe("docs/system.md", "mount(8) and fstab", PAGES), Recipe("docs/system.md", "systemd", UNITS)],
    [Recipe("docs/python.md", "pytest", PAGES)],
    [Recipe("docs/python.md", "Plain scripts", PAGES), Recipe("docs/python.md", "asyncio, trio, anyio", PAGES)],
    [Recipe(HERE, "7. Edit an image, and sign it again", PAGES)],
    [Recipe("docs/signing.md", "Rotate a key", PAGES)],
    [Recipe(HERE, "9. 100,000 files, and 20 GB that are mostly holes", MANY)],
    [Recipe("docs/running.md", "A Debian tree with apt inside", DEBIAN)],
]


def sections_of(page: str) -> dict[str, str]:
    """The text below each heading of a page, up to the next heading of any level."""
    text = (PROJECT / page).read_text()
    # A comment or root's prompt in a block is no heading.
    text = re.sub(r"^```.*?^```$", lambda block: block[0].replace("\n#", "\n #"), text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#{1,4} (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def anchor_of(heading: str) -> str:
    """Where a link to a heading goes, as the documents' site and GitHub name it."""
    return re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", heading.lower()))


def test_the_page_has_these_ten_jobs() -> None:
    numbered = [heading for heading in sections_of(HERE) if re.match(r"\d+\. ", heading)]
    assert [int(heading.split(".")[0]) for heading in numbered] == list(range(1, 11))
    assert len(JOBS) == 10


@pytest.mark.parametrize("number", range(1, 11))
def test_a_job_is_on_the_page_or_linked_and_is_run(number: int) -> None:
    [said] = [text for heading, text in sections_of(HERE).items() if heading.startswith(f"{number}. ")]
    for recipe in JOBS[number - 1]:
        section = sections_of(recipe.page)[recipe.heading]
        if recipe.page == HERE:
            assert section == said
        else:
            assert f"({recipe.page.removeprefix('docs/')}#{anchor_of(recipe.heading)})" in said
        file, name = recipe.test.split("::")
        assert f"\ndef {name}(" in (PROJECT / file).read_text()
        languages = set(re.findall(r"^```(\w+)$", section, re.MULTILINE))
        if recipe.test == PAGES:
            assert languages & {"sh", "python", "console"}
            assert any(recipe.page in pages for pages in DOCUMENTS)
        elif recipe.test in (DEBIAN, MANY):
            assert languages == {"console"} and "\n$ " in section
        else:
            assert recipe.test == UNITS and "systemctl start mystfuse@" in section


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    links = re.findall(r"\]\(([\w.-]*\.md)?(?:#([^)]*))?\)", (PROJECT / HERE).read_text())
    assert len(links) > 10
    for page, anchor in links:
        headings = sections_of(f"docs/{page}" if page else HERE)
        assert not anchor or anchor in map(anchor_of, headings), (page, anchor)


@pytest.mark.slow
@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
def test_many_files_and_a_sparse_one(is_root: bool, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    """Job 9 as the page has it, in full size: what is a hole stays one everywhere."""
    [section] = [text for heading, text in sections_of(HERE).items() if heading.startswith("9. ")]
    script = "".join(re.findall(r"^\$ (.*\n)", section, re.MULTILINE))
    result = run_as_typed(script, is_root, open_tmp_path, ordinary_user, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout.splitlines()
    assert said[said.index("100000") + 1] == said[-3] == "end"
    taken = {name: int(size) for size, name in (line.split("\t") for line in said if re.fullmatch(r"\d+\t\S+", line))}
    assert taken["many.img"] < 600_000 and abs(taken["new.img"] - taken["many.img"]) < 1000
    apparent, real = [int(line.split("\t")[0]) for line in said[-2:]]
    assert apparent == 20 * 1024**2 + 1 and taken["mnt/sparse"] < 100 and real < 100
    assert os.stat(open_tmp_path / "work/sparse").st_size == 20 * 1024**3 + len("end\n")
