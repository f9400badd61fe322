"""The recipes of docs/containers.md: each section works as it stands, behind the page's first block."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.project.test_documents import run_as_typed
from tests.project.test_jobs import sections_of

PAGE = "docs/containers.md"
# What podman needs inside another container: for cgroups and limits that root may not set there, crun's of one version.
PODMAN = """
mount -t cgroup2 none /sys/fs/cgroup
cat > /etc/containers/containers.conf <<'END'
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=512:512"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
END
cat > /etc/containers/storage.conf <<'END'
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
END
mkdir -p /var/lib/containers
"""
# Its place in /tmp would be left there.
RUN = 'mkdir -m 700 run; export XDG_RUNTIME_DIR="$PWD/run"\n'
PLAIN = """
mkdir -p plain/bin plain/proc plain/sys plain/dev; cp /bin/busybox plain/bin/sh
podman run --rm --rootfs "$PWD/plain" /bin/sh -c 'exit 0'
"""


def blocks_of_section(heading: str) -> list[tuple[str, str]]:
    """Language and text of the examples of a section; an empty heading is what comes before the first."""
    sections = sections_of(PAGE)
    text = sections[heading] if heading else next(iter(sections.values()))
    return re.findall(r"^```(sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


HEADINGS = list(sections_of(PAGE))[1:]
"""But the page's title."""


def script_of_section(heading: str, is_root: bool) -> str:
    script = ""
    for language, block in [*blocks_of_section(""), *blocks_of_section(heading)]:
        if language == "sh":
            script += block
        elif is_root:
            script += "".join(re.findall(r"^ ?# (.*\n)", block, re.MULTILINE))
    return script


@pytest.fixture(scope="module")
def podman(open_tmp_path_of_module: Path, ordinary_user: list[str]) -> None:
    """Skips where podman cannot run a container of a plain directory."""
    result = run_as_typed(RUN + PLAIN, True, open_tmp_path_of_module, ordinary_user, prepare=PODMAN)
    if result.returncode:
        pytest.skip(f"podman runs no container here: {result.stderr.splitlines()[-1]}")


CASES = [
    pytest.param(heading, is_root, id=f"{heading}, {'root' if is_root else 'user'}")
    for heading in HEADINGS
    for is_root in (True, False)
    if is_root or "sh" in dict(blocks_of_section(heading))
]
SAID = {
    "An OCI image": ['"Architecture": "', '"/etc/greeting"', "\napp\n"],
    "To docker, a registry, another layout": ["docker.io/library/app:1.0\n", "\nsha256:"],
    "A bundle for crun or runc": ["hello\n", r'\["/bin/cat","/etc/greeting"\]'],
    "podman with a mount as its root": ["hello\nchanged\n"],
    "podman as an ordinary user": ["hello\n"],
    "podman with an image of its own": [r"(?s)hello\n.*hello\n"],
    "A disk for a virtual machine": ["changed\n", "export-size: ", "5. Checking|Pass 5: "],
    "overlayfs over a mount": ["changed\nhello\n"],
}
"""What the commands print, by section: regular expressions."""


def test_each_recipe_is_known() -> None:
    assert SAID.keys() == set(HEADINGS)


@pytest.mark.parametrize(("heading", "is_root"), CASES)
def test_a_recipe_works(
    heading: str, is_root: bool, open_tmp_path: Path, ordinary_user: list[str], request: pytest.FixtureRequest
) -> None:
    script, prepare = script_of_section(heading, is_root), ""
    if "podman " in script:
        request.getfixturevalue("podman")
        script, prepare = RUN + script, PODMAN
    result = run_as_typed(script, is_root, open_tmp_path, ordinary_user, prepare=prepare)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    for pattern in SAID[heading]:
        assert re.search(pattern, result.stdout), (pattern, result.stdout, result.stderr)
    assert f" {open_tmp_path}" not in Path("/proc/mounts").read_text()


def test_the_disk_is_the_mount(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    """e2fsck found it clean; and its files are those of the mount."""
    script = script_of_section("A disk for a virtual machine", is_root=True)
    keep = "rsync -aHAX mnt/ kept/\nmystfuse umount mnt"
    assert script.count("mystfuse umount mnt") == 1
    script = script.replace("mystfuse umount mnt", keep)
    script += "mkdir disk\nmount -o loop,ro present.ext2 disk\ndiff -r --no-dereference disk kept\numount disk\n"
    result: subprocess.CompletedProcess[str] = run_as_typed(script, True, open_tmp_path, ordinary_user)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
