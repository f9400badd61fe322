"""Every command and example of the README and the documents works, one after the other, as root and as a user."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import session

from tests.support.commands import GROUP, SBIN, USER
from tests.support.mounts import OWN_MOUNTS

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [
    ["README.md"],
    ["docs/tour.md"],
    ["docs/trust.md"],
    ["docs/signing.md"],
    ["docs/encryption.md"],
    ["docs/making.md"],
    ["docs/secrets.md"],
    ["docs/writing.md"],
    ["docs/diff.md"],
    # The second document goes on where the first ends.
    ["docs/running.md", "docs/package-format.md"],
    ["docs/system.md"],
    ["docs/python.md"],
    ["docs/formats.md"],
    ["docs/troubleshooting.md"],
    ["docs/jobs.md"],
]

# A machine of its own: root's changes disappear with it. /dev/fuse has the mode that udev gives it.
MACHINE = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
for lower in /etc /usr/sbin /var/lib /srv; do
    mkdir -p "/run/upper$lower" "/run/work$lower"
    mount -t overlay -o "lowerdir=$lower,upperdir=/run/upper$lower,workdir=/run/work$lower" overlay "$lower"
done
cp "$0/bin/mount.mystfuse" /usr/sbin
mknod -m 666 /run/fuse c 10 229
mount --bind /run/fuse /dev/fuse
cd "$0/work"
"""


def blocks_of(document: str) -> list[tuple[str, str]]:
    """The examples of a document: language and text."""
    text = (PROJECT / document).read_text()
    return re.findall(r"^```(sh|python|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def script_of(document: str, is_root: bool) -> str:
    """One script of all the examples of a document that this user can try."""
    script = ""
    for language, block in blocks_of(document):
        if language == "sh" and not block.startswith("scripts/"):
            script += block
        elif language == "python":
            script += f"python3 <<'END_OF_EXAMPLE'\n{block}END_OF_EXAMPLE\n"
        elif language == "console" and is_root:
            # test_systemd.py runs the commands that need systemd.
            script += "".join(re.findall(r"^# (?!systemctl |journalctl )(.*\n)", block, re.MULTILINE))
    return script


def run_as_typed(
    script: str,
    is_root: bool,
    open_tmp_path: Path,
    ordinary_user: list[str],
    timeout: int = 200,
    prepare: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run what a user would type, up to the first command that fails, in an empty directory of a machine of its own.

    Args:
        script: for bash.
        is_root: whether root types it, or an ordinary user.
        open_tmp_path, ordinary_user: the fixtures.
        timeout: seconds.
        prepare: what root does to that machine before.
    """
    python = " ".join(ordinary_user[ordinary_user.index("env") : -2])
    (open_tmp_path / "bin").mkdir()
    for name, words in {
        "mystfuse": f"{python} -m mystfuse",
        "mount.mystfuse": f"{python} -m mystfuse.cli.commands.mount_mystfuse",
        "python3": python,
    }.items():
        (open_tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (open_tmp_path / "bin" / name).chmod(0o755)
    work = open_tmp_path / "work"
    work.mkdir()
    become = ["env", f"HOME={work}"]
    if not is_root:
        work.chmod(0o777)
        become = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", *become]
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private",
         *OWN_MOUNTS, "bash", "-c", f'{MACHINE}{prepare}\nexec "$@"', open_tmp_path, *become,
         "bash", "-e", "-o", "pipefail", "-x", "-c", script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        env={"PATH": f"{open_tmp_path / 'bin'}:{SBIN}", "LANG": "C.UTF-8"},
    )  # fmt: skip


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
@pytest.mark.parametrize("documents", DOCUMENTS, ids=lambda documents: Path(documents[0]).stem)
def test_the_commands_of_a_document_work(
    documents: list[str], is_root: bool, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    script = "".join(script_of(document, is_root) for document in documents)
    result = run_as_typed(script, is_root, open_tmp_path, ordinary_user)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    # A comment says with what words a command fails on purpose.
    expected = re.findall(r'exit status \$\?" *# (\d+)', script)
    assert script.count("exit status $?") == len(expected)
    assert re.findall(r"^exit status (\d+)$", result.stdout, re.MULTILINE) == expected


def test_every_example_is_run_or_named_as_an_exception() -> None:
    documented = {path for path in ("README.md", *(f"docs/{file.name}" for file in (PROJECT / "docs").glob("*.md")))
                  if blocks_of(path)}  # fmt: skip
    run = {document for documents in DOCUMENTS for document in documents}
    # The examples in these are scripts, which have tests of their own.
    assert documented - run == {"docs/install.md", "docs/performance.md", "docs/containers.md", "docs/remote.md"}
    assert run <= documented


@pytest.mark.fuse
def test_the_recorded_session_is_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{SBIN}")
    printed = "".join(f"$ {command}{output}" for command, output in session.run_commands(tmp_path))
    lines = re.findall(r"<text [^>]*clip-path[^>]*>([^<]*)</text>", (PROJECT / "docs/session.svg").read_text())
    assert _alike(html.unescape("".join(lines))) == _alike(printed)


def _alike(text: str) -> str:
    """The text without blanks and without values that differ from run to run: the picture breaks lines."""
    text = re.sub(r"\s", "", re.sub(r"/tmp/\S+/mnt", "N", re.sub(r"\s+", " ", text.replace("\xa0", " "))))
    return re.sub(r"(?<=roothash)[0-9a-f]{64}|\d+", "N", text)


DECISIONS = sorted((PROJECT / "docs/adr").glob("0*.md"))


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.stem[:4])
def test_every_decision_has_the_four_headings(decision: Path) -> None:
    text = decision.read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Status", "Context", "Decision", "Consequences"]
    assert text.startswith(f"# {int(decision.name[:4])}. ")


def test_the_index_lists_every_decision_under_its_title() -> None:
    listed = re.findall(r"^- \[(.*)\]\((.*)\)$", (PROJECT / "docs/adr/index.md").read_text(), re.MULTILINE)
    assert listed == [(file.read_text().splitlines()[0].removeprefix("# "), file.name) for file in DECISIONS]


def test_the_code_that_documents_name_exists() -> None:
    """Files (``layer/module.py``), modules (``layer.module``), and attributes of our classes (``Class.method``)."""
    package = PROJECT / "mystfuse"
    code = "\n".join(file.read_text() for file in package.rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", code, re.MULTILINE))
    layers = {directory.name for directory in package.iterdir() if directory.is_dir()}
    gone = []
    for document in sorted((PROJECT / "docs").rglob("*.md")):
        for name in re.findall(r"`([\w/]+\.\w[\w.]*)`", document.read_text()):
            head, second = name.split(".")[:2]
            if "/" in name and name.endswith(".py"):
                exists = any((root / name).exists() for root in (PROJECT, package))
            elif head in layers and second not in ("d", "txt"):
                exists = (package / head / f"{second}.py").exists() or (package / head / second).is_dir()
            else:
                exists = head not in classes or re.search(rf"\b{second}\b", code) is not None
            if not exists:
                gone.append(f"{document.name}: {name}")
    assert gone == []
